"""Opens pages in headless Chromium for tests: nothing from the network, nothing on the console."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (400, 800, 1280)


def chromium_path() -> str:
    """Return Debian's Chromium; without one the test is skipped, in CI it fails."""
    found = os.environ.get("MEDVLP_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        message = "chromium is missing: install it, or name it in MEDVLP_CHROMIUM"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found


@contextmanager
def open_page(html: Path, **options: Any) -> Iterator[Any]:
    """Open a page and fail at the end if it asked the network for anything or wrote an error to the console."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(**options).new_page()
        requests: list[str] = []
        problems: list[str] = []

        def watch(route: Any) -> None:
            url = route.request.url
            if url == html.resolve().as_uri():
                route.continue_()
            else:
                requests.append(url)
                route.abort()

        page.route("**/*", watch)
        page.on(
            "request",
            lambda r: None if r.url.startswith(("data:", html.resolve().as_uri())) else requests.append(r.url),
        )
        page.on(
            "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(html.resolve().as_uri())
        yield page
        browser.close()
        assert not requests, f"the page asked for {requests}"
        assert not problems, f"the console says {problems}"


def overflow(page: Any, width: int) -> int:
    """Return by how many pixels the page is wider than a window of this width."""
    page.set_viewport_size({"width": width, "height": 900})
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
