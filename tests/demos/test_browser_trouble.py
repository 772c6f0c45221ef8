"""The page in a real Chromium when things go wrong, with two visitors, a camera, or the keyboard alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import vtoken
from tests.demos.visit import LONG, Visit
from vtoken.demos.app import Server

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
expect = sync_api.expect


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
    visit.page.get_by_label("To second (0: the end)").fill("1")
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
    visit.page.wait_for_timeout(2500)
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
