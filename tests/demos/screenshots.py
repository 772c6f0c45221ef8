"""The pictures of the page in the README: ``python -m tests.demos.screenshots docs/images [MODEL]``."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from vtoken.demos.app import serving
from vtoken.demos.settings import REFERENCE, Settings

LONG = 120_000  # milliseconds
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def main(folder: Path, model: str = REFERENCE) -> None:
    """Write ``demo-answer.png`` (light) and ``demo-kept.png`` (dark)."""
    folder.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with serving(Settings(model=model, port=0)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name, scheme, sample, tab in (
            ("demo-answer", "light", "panels", "Answer"),
            ("demo-kept", "dark", "panels-cuts", "Kept"),
        ):
            context = browser.new_context(viewport={"width": 1280, "height": 1000}, color_scheme=scheme)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(server.url)
            page.click(f"#vt-samples button[data-value={sample}]", timeout=LONG)
            expect(page.locator("#vt-facts")).to_contain_text(f"{sample}.mp4", timeout=LONG)
            page.locator("#vt-ideas button", has_text="show at").first.click()
            expect(page.locator("#vt-question textarea")).to_have_value(
                page.locator("#vt-ideas button", has_text="show at").first.inner_text()
            )
            page.click("#vt-ask")
            expect(page.locator(".vt-card dl")).to_have_count(2, timeout=LONG)
            expect(page.locator(".vt-progress")).to_have_count(0, timeout=LONG)
            page.get_by_role("tab", name=tab, exact=True).click()
            if tab == "Kept":
                scrub = page.locator(".vt-scrub")
                scrub.focus()
                for _ in range(9):
                    page.keyboard.press("ArrowRight")
                page.locator("h1").click()
            page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
            page.wait_for_timeout(500)
            shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            # the octree keeps small patches of colour, the median cut the shades of a picture
            how = Image.Quantize.MEDIANCUT if tab == "Kept" else Image.Quantize.FASTOCTREE
            picture = shot.quantize(256, how)
            picture.save(folder / f"{name}.png", optimize=True)
            context.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
