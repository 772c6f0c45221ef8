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
from vtoken.reference.synthetic import render
from vtoken.video.write import write_video

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


def write_avi(path: Path) -> Path:
    """A clip that no browser plays: MPEG-4 part 2 in an AVI."""
    av = pytest.importorskip("av")
    clip = render("objects", 1.0, 8.0, (96, 128))
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for picture in clip.frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_clip_that_the_browser_cannot_play_shows_a_frame_and_is_read(
    visit: Visit, tmp_path: Path, clip: Path
) -> None:
    visit.upload(write_avi(tmp_path / "camera.avi"))
    expect(visit.page.locator("#vt-facts")).to_contain_text("camera.avi", timeout=LONG)
    expect(visit.page.locator(".vt-poster-note")).to_be_visible(timeout=LONG)
    same = "document.querySelector('#vt-video video').poster === document.querySelector('[data-poster]').dataset.poster"
    assert visit.page.evaluate(same) and visit.page.locator("[data-testid=toast-body]").count() == 0
    visit.page.fill("#vt-question textarea", "What is it?")
    visit.page.uncheck("#vt-beside input")
    visit.ask()
    visit.answered(1)
    visit.take("panels")  # one that can be played: no frame stands in front of it
    expect(visit.page.locator(".vt-poster-note")).to_be_hidden(timeout=LONG)
    assert visit.page.evaluate("document.querySelector('#vt-video video').poster") == ""


def test_a_reload_during_a_run_says_what_it_ended(browser: Any, server: Server, long_clip: Path) -> None:
    visit = Visit(browser, server)
    visit.upload(long_clip)
    expect(visit.page.locator("#vt-facts p")).to_be_visible(timeout=LONG)
    visit.page.fill("#vt-question textarea", "What moves?")
    visit.choose("gate", "none")
    visit.ask()
    expect(visit.page.locator(".vt-progress")).to_be_visible(timeout=LONG)
    visit.page.reload()
    expect(visit.notice()).to_contain_text("loaded again while a run was at work", timeout=LONG)
    visit.page.reload()
    expect(visit.page.locator("#vt-samples button").first).to_be_visible(timeout=LONG)
    visit.page.wait_for_timeout(500)
    expect(visit.notice()).to_have_count(0)
    visit.troubles = [t for t in visit.troubles if "abort" not in t.lower() and "Connection errored" not in t]
    visit.close()


def test_a_reload_ends_the_stream_of_the_live_tab_and_makes_room(browser: Any, server: Server, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "watched.mp4", render("objects", 19.0, 5.0, (112, 168)))
    first, second = Visit(browser, server), Visit(browser, server)
    for one in (first, second):
        one.upload(clip)
        expect(one.page.locator("#vt-facts p")).to_be_visible(timeout=LONG)
        one.tab("Live")
        one.page.click("#vt-live-start")
        expect(one.page.locator(".vt-live")).to_contain_text("Watching.", timeout=LONG)
    third = Visit(browser, server)  # the page takes two at a time
    third.upload(clip)
    expect(third.page.locator("#vt-facts p")).to_be_visible(timeout=LONG)
    third.tab("Live")
    third.page.click("#vt-live-start")
    expect(third.page.locator("#vt-live-notice")).to_contain_text("visitors watch live already", timeout=LONG)
    first.page.reload()
    expect(first.notice()).to_contain_text("the Live tab was at work", timeout=LONG)
    third.page.wait_for_timeout(2000)
    third.page.click("#vt-live-start")
    expect(third.page.locator(".vt-live")).to_contain_text("Watching.", timeout=LONG)
    for one in (second, third):
        one.page.click("#vt-live-stop")
        expect(one.page.locator(".vt-live")).to_contain_text("Press Watch to begin anew", timeout=LONG)
    first.troubles = [t for t in first.troubles if "abort" not in t.lower() and "Connection errored" not in t]
    for one in (first, second, third):
        one.close()


def test_a_conversation_keeps_the_video_in_the_cache(visit: Visit, loaded: tuple[Any, Any], clip: Path) -> None:
    visit.upload(clip)
    expect(visit.page.locator("#vt-facts p")).to_be_visible(timeout=LONG)
    visit.page.check("#vt-remember input")
    visit.page.uncheck("#vt-beside input")
    for question in ("What is it?", "And now?"):
        visit.page.fill("#vt-question textarea", question)
        visit.ask()
        expect(visit.page.locator("#vt-chat")).to_contain_text(question, timeout=LONG)
        visit.answered(1)
    expect(visit.page.locator(".vt-notes")).to_contain_text("The video was in the cache")
    (told,) = visit.report()
    assert told["reused"] and [m["role"] for m in told["options"]["history"]] == ["user", "assistant"]
    assert told["answer"] == vtoken.ask(*loaded, clip, "And now?", **told["options"]).text
