"""Live play, driven in a real browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A Chromium without a window: the one of `playwright install chromium`, or else the machine's own.

    ValueError, one line, if there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise ValueError("playwright is not installed; it drives the browser: pip install playwright") from None
    with sync_playwright() as playwright:
        candidates = [playwright.chromium.executable_path, *map(shutil.which, NAMES)]
        path = next((path for path in candidates if path and Path(path).exists()), None)
        if path is None:
            raise ValueError("no Chromium is installed; apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()
