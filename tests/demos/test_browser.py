"""The page in a real Chromium, every tab used as a visitor would.

Screenshots go to the folder in VTOKEN_SCREENSHOTS, or to pytest's temporary folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import vtoken
from tests.demos.visit import LONG, SHAPES, Visit
from vtoken.demos import clips
from vtoken.demos.app import Server

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
expect = sync_api.expect


def test_upload_choose_ask_and_read(visit: Visit, clip: Path, loaded: tuple[Any, Any]) -> None:
    visit.upload(clip)
    expect(visit.page.locator("#vt-facts")).to_contain_text("168×112 · 10 frames/s · 2.0 s", timeout=LONG)
    visit.page.fill("#vt-question textarea", "What is on the slide?")
    visit.choose("reducer", "divprune")
    expect(visit.page.locator("#vt-plan")).to_contain_text("grt | divprune")
    visit.number("amount", 0.1)
    visit.number("fps", 5)
    visit.ask()
    visit.answered()
    answer = vtoken.ask(
        *loaded, clip, "What is on the slide?", fps=5.0, plan="grt | divprune", keep=0.1, max_frames=1024,
        max_new_tokens=64,
    )  # fmt: skip
    card = visit.page.locator(".vt-card").first
    expect(card).to_contain_text(f"{answer.report.tokens:,}")
    expect(card).to_contain_text(f"of {answer.report.cells:,}")
    expect(visit.page.locator("#vt-headline")).to_contain_text("×")
    plan, full = visit.report()
    assert plan["answer"] == answer.text and plan["report"]["tokens"] == answer.report.tokens
    assert plan["options"]["fps"] == 5 and full["report"]["plan"] == "none"
    assert full["report"]["tokens"] == full["report"]["cells"] == answer.report.cells
    said = visit.page.locator("#vt-chat").inner_text()
    assert "What is on the slide?" in said


def test_the_overlay_scrubs_plays_and_follows_the_pointer(visit: Visit) -> None:
    visit.take("cuts")
    visit.page.uncheck("#vt-beside input")
    visit.ask()
    visit.answered(1)
    visit.tab("Kept")
    now, scrub = visit.page.locator(".vt-now"), visit.page.locator(".vt-scrub")
    expect(now).to_contain_text("0.00 s", timeout=LONG)
    whole = re.search(r"(\d+) of (\d+) cells sent", now.inner_text())
    assert whole and whole[1] == whole[2]  # the first step is sent whole
    scrub.focus()
    visit.page.keyboard.press("ArrowRight")
    expect(now).not_to_contain_text("0.00 s")
    expect(now).to_contain_text("shown again")
    expect(visit.page.locator(".vt-legend li:visible")).to_have_text(
        ["new: computed and sent", "shown again, not computed"]
    )
    expect(visit.page.locator(".vt-timeline .vt-cut")).to_have_count(3)
    line = visit.page.locator(".vt-timeline")
    line.scroll_into_view_if_needed()
    box = line.bounding_box()
    visit.page.mouse.move(box["x"] + box["width"] * 0.505, box["y"] + 30)
    expect(now).to_contain_text(re.compile(r"4\.0\d s"))
    seen = [now.inner_text()]
    visit.page.get_by_label("As last encoded").check()
    visit.page.locator(".vt-play").click()
    expect(visit.page.locator(".vt-play")).to_have_text("Pause")
    expect(now).not_to_have_text(seen[0])
    visit.page.locator(".vt-play").click()
    expect(visit.page.locator(".vt-play")).to_have_text("Play")
    painted = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert visit.page.locator(".vt-picture").evaluate(painted) > 20


def test_compare_has_a_row_a_plan_and_a_file(visit: Visit, clip: Path) -> None:
    visit.upload(clip)
    visit.page.fill("#vt-question textarea", "What is on the slide?")
    visit.tab("Compare")
    visit.page.click("#vt-compare")
    rows = visit.page.locator("#vt-rows tbody tr")
    expect(rows).to_have_count(4, timeout=LONG)
    expect(visit.page.locator(".vt-progress")).to_have_count(0, timeout=LONG)
    assert [rows.nth(i).locator("code").inner_text().split(" (")[0] for i in range(4)] == [
        "none", "grt", "grt | divprune", "evs",
    ]  # fmt: skip
    with visit.page.expect_download() as waiting:
        visit.page.click("#vt-rows-csv")
    assert Path(waiting.value.path()).read_text().count("\n") == 5


def test_the_curve_is_drawn_and_saved(visit: Visit, clip: Path) -> None:
    visit.upload(clip)
    expect(visit.page.locator("#vt-facts p")).to_be_visible(timeout=LONG)
    visit.tab("Curve")
    visit.page.click("#vt-draw")
    expect(visit.page.locator("#vt-curve-table tbody tr")).to_have_count(15, timeout=LONG)
    expect(visit.page.locator("#vt-chart circle")).to_have_count(15)
    with visit.page.expect_download() as waiting:
        visit.page.click(".vt-save")
    assert Path(waiting.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_in_light_and_dark_on_desktop_and_phone(
    browser: Any, server: Server, shots: Path, shape: str, scheme: str
) -> None:
    visit = Visit(browser, server, shape, scheme)
    name = f"{shape}-{scheme}"
    ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground)[:3])) < 60) == (scheme == "dark")
    visit.page.screenshot(path=shots / f"{name}-start.png", full_page=True)
    visit.take("panels")
    visit.ask()
    visit.answered()
    visit.page.screenshot(path=shots / f"{name}-answer.png", full_page=True)
    for tab, button, rows in (
        ("Kept", "", ""),
        ("Curve", "#vt-draw", "#vt-curve-table"),
        ("Compare", "#vt-compare", "#vt-rows"),
        ("Export", "", ""),
    ):
        visit.tab(tab)
        if button:
            visit.page.click(button)
            expect(visit.page.locator(f"{rows} tbody tr").nth(3)).to_be_visible(timeout=LONG)
            expect(visit.page.locator(".vt-progress")).to_have_count(0, timeout=LONG)
        assert visit.fits(), f"the {tab} tab is wider than the {shape}"
        visit.page.locator("#vt-results").screenshot(path=shots / f"{name}-{tab.lower()}.png")
    visit.page.get_by_label("Switch between light and dark").click()
    visit.page.wait_for_function("old => getComputedStyle(document.body).backgroundColor !== old", arg=ground)
    visit.close()


def test_samples_of_the_gallery_all_open(visit: Visit) -> None:
    for name in clips.samples():
        visit.take(name)


def test_the_live_tab_watches_a_clip_and_answers(visit: Visit) -> None:
    visit.take("cuts")
    visit.tab("Live")
    visit.page.click("#vt-live-start")
    state = visit.page.locator(".vt-live")
    expect(state).to_contain_text("The source has ended", timeout=LONG)
    expect(state.locator("polyline")).to_have_count(3)
    visit.page.fill("#vt-live-question textarea", "What happens?")
    visit.page.press("#vt-live-question textarea", "Enter")
    expect(visit.page.locator("#vt-live-chat")).to_contain_text(re.compile(r"\d\.\d s: "), timeout=LONG)
    assert visit.fits()
    visit.page.click("#vt-live-stop")


def test_the_live_tab_watches_a_webcam(visit: Visit) -> None:
    visit.tab("Live")
    visit.page.locator("#vt-live-kind").get_by_text("Webcam").click()
    visit.page.click("text=Click to Access Webcam")
    visit.page.click("#vt-live-camera .button-wrap button >> nth=0")
    visit.page.click("#vt-live-start")
    expect(visit.page.locator(".vt-live dd").nth(1)).not_to_contain_text(re.compile("^0"), timeout=LONG)
    expect(visit.page.locator(".vt-live")).to_contain_text("Watching.")
    visit.page.click("#vt-live-stop")
