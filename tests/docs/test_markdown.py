"""README and docs: every link leads somewhere, every command parses, every snippet runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vtoken.cli.main import SUBCOMMANDS, parser
from vtoken.reference import data
from vtoken.video.write import write_video

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    p for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "training").rglob("*.md")] if p.is_file()
)
# clients of the page and of the server, which tests/demos and tests/serve run; hosts with environments of their own
ELSEWHERE = r"^ *(from|import) (gradio_client|openai|ray|vlmeval|lmms_eval|vllm)\b"
SNIPPETS = [
    (page, i, text)
    for page in PAGES
    for i, text in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
    if page.name != "CONTRIBUTING.md" and not re.search(ELSEWHERE, text, re.M)
]


def label(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else ""


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def code_lines(text: str) -> list[str]:
    """Lines of code blocks, fenced or indented; lines that go on behind a backslash or in quotes are joined."""
    inside, out = False, []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif inside or line.startswith("    "):
            out.append(line.strip())
    joined: list[str] = []
    for line in "\n".join(out).replace("\\\n", " ").splitlines():
        open_quote = joined and joined[-1].startswith("vtoken ") and joined[-1].count('"') % 2
        joined[-1:] = [f"{joined[-1]} {line}"] if open_quote else [*joined[-1:], line]
    return joined


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    for link in re.findall(r"]\(([^)\s]+)\)", text):
        if re.match(r"(https?|mailto):", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{label(page)}: {link} leads nowhere"
        if anchor and target.suffix == ".md":
            heads = [slug(h) for h in re.findall(r"^#+ (.*)$", target.read_text(), re.M)]
            assert anchor in heads, f"{label(page)}: {link} names no heading"


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for line in code_lines(page.read_text()):
        for part in line.split(" && "):
            check(part.split(" #")[0].strip(), targets, page, capsys)


def check(line: str, targets: list[str], page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where a command of ours has arguments that it does not take, or names what is not there."""
    line = re.sub(r"^(\w+=\S+ )+", "", line)  # settings of the environment
    if found := re.match(r"make ([a-z-]+)", line):
        assert found[1] in targets, f"{label(page)}: {line}"
    if found := re.match(r"(?:\S*python3?) -m ((?:benchmarks|training|tests|vtoken)[\w.]*)", line):
        file = ROOT / found[1].replace(".", "/")
        assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), f"{label(page)}: {line}"
    words = re.match(r"(?:\S*python3? -m )?vtoken (?=[a-z])(.*)", line)
    if words is None or "..." in line or "[" in line:
        return
    given = shlex.split(words[1].removesuffix("&"))
    if given[0] == "bench" and given[1:2] and given[1] in SUBCOMMANDS:
        given[:2] = [f"bench {given[1]}"]
    try:
        parser().parse_args(given)
    except SystemExit as stop:
        assert stop.code in (0, None), f"{label(page)}: {line}: {capsys.readouterr().err}"


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number", "text"), SNIPPETS, ids=label)
def test_snippets_run(page: Path, number: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference model stands for a hub name here, and a clip of its world for lecture.mp4 and for a camera."""
    write_video(tmp_path / "lecture.mp4", data.clip(3, "test"), crf=6)  # type: ignore[arg-type]
    text = (
        text.replace("Qwen/Qwen2.5-VL-3B-Instruct", "reference")
        .replace("rtsp://camera/door", "lecture.mp4")
        .replace("max_new_tokens=128", "max_new_tokens=8")
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(text, f"{page.name}:{number}", "exec"), {"__name__": "snippet"})
