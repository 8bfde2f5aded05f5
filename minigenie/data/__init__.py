"""Footage in, clips out: collect games, ingest videos, read datasets."""
