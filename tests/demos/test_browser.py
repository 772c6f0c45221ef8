"""The page in a real Chromium: every tab used as a visitor would, in light and dark, on a desktop and on a phone.

Screenshots go to the folder in VTOKEN_SCREENSHOTS, or to pytest's temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vtoken
from vtoken.demos import clips
from vtoken.demos.app import Server

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
expect = sync_api.expect
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FLAGS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SHAPES = {"desktop": (1360, 900), "phone": (390, 844)}
LONG = 90_000  # milliseconds for a run on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("CHROMIUM") or next(
        (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
    )
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium, or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield made
        made.close()


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("VTOKEN_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Visit]:
    made = Visit(browser, server)
    yield made
    made.close()


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
    expect(now).to_contain_text("as before")
    expect(visit.page.locator(".vt-timeline .vt-cut")).to_have_count(3)
    line = visit.page.locator(".vt-timeline")
    line.scroll_into_view_if_needed()
    box = line.bounding_box()
    visit.page.mouse.move(box["x"] + box["width"] * 0.505, box["y"] + 30)
    expect(now).to_contain_text(re.compile(r"4\.0\d s"))
    seen = [now.inner_text()]
    visit.page.get_by_label("As the gate leaves it").check()
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


def test_a_run_can_be_stopped_and_the_next_one_runs(visit: Visit, long_clip: Path, clip: Path) -> None:
    visit.upload(long_clip)
    expect(visit.notice()).to_contain_text("20 s at most", timeout=LONG)  # said, and the first 20 s are chosen
    visit.page.click(".vt-close")
    expect(visit.notice()).to_have_count(0)
    visit.page.fill("#vt-question textarea", "What moves?")
    visit.choose("gate", "none")
    visit.ask()
    expect(visit.page.locator(".vt-progress")).to_be_visible(timeout=LONG)
    visit.page.click("#vt-stop")
    expect(visit.page.locator(".vt-progress")).to_have_count(0, timeout=LONG)
    expect(visit.page.locator("#vt-stop")).to_be_disabled()
    stopped = visit.notice().count() == 1 or "(stopped)" in visit.page.locator("#vt-chat").inner_text()
    assert stopped, "the run was over before it could be stopped"
    visit.page.locator("#vt-trim > button").click()
    visit.page.get_by_label("To second (empty: the end)").fill("1")
    visit.choose("gate", "grt")
    visit.page.uncheck("#vt-beside input")
    visit.ask()
    visit.answered(1)


def test_errors_are_words_on_the_page(visit: Visit, tmp_path: Path, clip: Path) -> None:
    visit.ask()
    expect(visit.notice()).to_contain_text("no clip yet", timeout=LONG)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:600])
    visit.upload(broken)
    expect(visit.notice()).to_contain_text("broken.mp4", timeout=LONG)
    visit.page.reload()
    expect(visit.page.locator("#vt-ask")).to_be_visible(timeout=LONG)
    visit.upload(clip)
    expect(visit.page.locator("#vt-facts p")).to_be_visible(timeout=LONG)
    visit.page.fill("#vt-question textarea", "")
    visit.ask()
    expect(visit.notice()).to_contain_text("no question", timeout=LONG)
    visit.page.fill("#vt-question textarea", "What?")
    visit.advanced()
    visit.page.fill("#vt-written input, #vt-written textarea", "grt | nothing")
    visit.ask()
    expect(visit.notice()).to_contain_text("unknown method 'nothing'", timeout=LONG)
    assert "Traceback" not in visit.page.locator("body").inner_text()


def test_wrong_types_and_large_files_are_refused_in_words(browser: Any, server: Server, tmp_path: Path) -> None:
    visit = Visit(browser, server)
    picture, large = tmp_path / "notes.txt", tmp_path / "large.mp4"
    picture.write_text("no clip")
    large.write_bytes(bytes(3 * 2**20))
    visit.upload(picture)
    expect(visit.page.locator("body")).to_contain_text(re.compile("invalid file type", re.I), timeout=LONG)
    visit.upload(large)
    expect(visit.page.locator("body")).to_contain_text(re.compile("exceeds|too large|maximum", re.I), timeout=LONG)
    visit.troubles = [t for t in visit.troubles if "413" not in t and "Payload" not in t]
    visit.close()


def test_two_visitors_at_once(browser: Any, server: Server, loaded: tuple[Any, Any], clip: Path) -> None:
    first, second = Visit(browser, server), Visit(browser, server)
    for one, question, preset in ((first, "What is it?", "Fast"), (second, "Who is there?", "Faithful")):
        one.upload(clip)
        expect(one.page.locator("#vt-facts p")).to_be_visible(timeout=LONG)
        one.page.fill("#vt-question textarea", question)
        one.page.locator("#vt-preset label", has_text=preset).click()
        expect(one.page.locator("#vt-plan")).to_contain_text("divprune" if preset == "Fast" else "threshold=3.5")
    first.ask()
    second.ask()
    first.answered()
    second.answered()
    fast, faithful = first.report()[0], second.report()[0]
    assert (fast["question"], faithful["question"]) == ("What is it?", "Who is there?")
    assert (fast["options"]["plan"], faithful["options"]["plan"]) == ("grt | divprune", "grt:threshold=3.5")
    for one in (fast, faithful):
        alone = vtoken.ask(*loaded, clip, one["question"], **one["options"])
        assert (one["answer"], one["report"]["tokens"]) == (alone.text, alone.report.tokens)
    first.close()
    second.close()
    assert "Who" not in json.dumps(fast)


def test_a_recording_can_be_asked_about(visit: Visit) -> None:
    video = visit.page.locator("#vt-video")
    video.get_by_label("Capture from camera").click()
    video.get_by_text("Access Webcam").click()
    video.get_by_text("Record", exact=True).click()
    visit.page.wait_for_timeout(1500)
    video.get_by_text("Stop", exact=True).click()
    expect(visit.page.locator("#vt-facts")).to_contain_text("webm", timeout=LONG)
    expect(visit.page.locator("#vt-facts p")).to_be_visible(timeout=LONG)
    visit.page.fill("#vt-question textarea", "What is it?")
    visit.page.uncheck("#vt-beside input")
    visit.number("fps", 2)
    visit.ask()
    visit.answered(1)


def test_the_keyboard_and_labels_suffice(visit: Visit) -> None:
    visit.page.locator("#vt-samples button").first.focus()
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#vt-facts p")).to_be_visible(timeout=LONG)
    visit.page.locator("#vt-ideas button").first.focus()
    visit.page.keyboard.press("Enter")
    visit.page.locator("#vt-question textarea").focus()
    for _ in range(30):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.id") == "vt-ask":
            break
    visit.page.keyboard.press("Enter")
    visit.answered()
    unnamed = visit.page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([type=file]), textarea, canvas, svg[role=img]")]
        .filter(e => e.offsetParent !== null && !e.disabled)
        .filter(e => !(e.innerText || e.ariaLabel || e.title || (e.labels && e.labels.length) || e.closest("label")
          || e.getAttribute("aria-labelledby") || e.placeholder)).map(e => e.outerHTML.slice(0, 160))"""
    )
    assert not unnamed, "\n".join(unnamed)


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
