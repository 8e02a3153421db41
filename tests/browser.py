"""A headless Chromium for the tests that open pages, where there is one. Nothing is fetched, nothing is remembered."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip


def programs() -> tuple[str | None, str | None]:
    """The browser and its driver, as far as they are installed."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return browser, shutil.which("chromedriver")


def missing() -> str | None:
    """Why no page can be opened here; None where one can."""
    for name, program in zip(("chromium", "chromedriver"), programs(), strict=True):
        if program is None:
            return f"no {name} on the PATH (Debian: apt install chromium chromium-driver)"
    return None


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser that logs what pages complain of, with a new profile."""
    from selenium import webdriver

    browser, driver = programs()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = browser or ""
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        started = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            yield started
        finally:
            started.quit()


def show(browser: Any, page: Path, *, wide: int = 1280, high: int = 900, dark: bool = False) -> None:
    """Open a page from disk in a window of that size, and wait until it has drawn itself."""
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": wide < 700}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(page.resolve().as_uri())
    ready = "return document.body.dataset.ready === 'true'"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(ready))


def complaints(browser: Any) -> list[str]:
    """What the console said since it was last asked, but for remarks."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
