"""A page in a real Chromium, which playwright drives: what it asked for, what it said, how it lies on the screen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Shown:
    """requests: addresses that were asked for, the page's own aside. said: lines of the console, errors among them."""

    page: Any
    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


@contextmanager
def shown(path: Path, *, width: int, dark: bool = False) -> Iterator[Shown]:
    """The file `path` in a window `width` pixels wide; the test is skipped where there is no browser."""
    library = pytest.importorskip("playwright.sync_api", reason="pip install playwright drives the browser")
    with library.sync_playwright() as driver:
        own = driver.chromium.executable_path
        program = next(filter(None, map(shutil.which, NAMES)), own if Path(own).exists() else None)
        if program is None:
            pytest.skip("no Chromium here: apt install chromium, or playwright install chromium")
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light"
        )
        found = Shown(context.new_page())
        address = path.absolute().as_uri()
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("console", lambda message: found.said.append(message.text))
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        found.page.goto(address)
        found.requests.remove(address)
        yield found
        browser.close()
