"""A world as a page without a server."""
