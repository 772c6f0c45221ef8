"""A visitor in a real Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vtoken.demos.app import Server

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
expect = sync_api.expect
SHAPES = {"desktop": (1360, 900), "phone": (390, 844)}
LONG = 90_000  # milliseconds for a run on a busy machine


class Visit:
    """A visitor's page; at the end nothing was fetched from elsewhere and the console is clean."""

    def __init__(self, browser: Any, server: Server, shape: str = "desktop", scheme: str = "light") -> None:
        width, height = SHAPES[shape]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, permissions=["camera"]
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(LONG)
        self.troubles: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.troubles.append(m.text))
        self.page.on("pageerror", lambda e: self.troubles.append(str(e)))
        self.page.on("request", self._request)
        self.url = server.url
        self.page.goto(server.url)
        expect(self.page.locator("#vt-samples button").first).to_be_visible(timeout=LONG)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.troubles.append(f"fetched {request.url}")

    def take(self, sample: str) -> None:
        self.page.click(f"#vt-samples button[data-value={sample}]")
        expect(self.page.locator("#vt-facts")).to_contain_text(f"{sample}.mp4", timeout=LONG)

    def upload(self, path: Path) -> None:
        self.page.set_input_files("#vt-video input[type=file]", str(path))

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def number(self, part: str, value: float) -> None:
        field = self.page.locator(f"#vt-{part} input[type=number]")
        field.fill(str(value))
        field.press("Tab")

    def choose(self, part: str, value: str) -> None:
        self.page.locator(f"#vt-{part} input").click()
        self.page.get_by_role("option", name=value, exact=True).click()

    def advanced(self) -> None:
        self.page.locator("#vt-advanced > button").click()

    def ask(self) -> None:
        self.page.click("#vt-ask")

    def answered(self, cards: int = 2) -> None:
        expect(self.page.locator(".vt-card dl")).to_have_count(cards, timeout=LONG)
        expect(self.page.locator(".vt-progress")).to_have_count(0, timeout=LONG)

    def notice(self) -> Any:
        return self.page.locator(".vt-notice")

    def report(self) -> list[dict[str, Any]]:
        """The JSON report as a visitor downloads it."""
        self.tab("Export")
        with self.page.expect_download() as waiting:
            self.page.click("#vt-report-file")
        return json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))

    def fits(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def close(self) -> None:
        self.context.close()
        assert not self.troubles, "\n".join(self.troubles)
