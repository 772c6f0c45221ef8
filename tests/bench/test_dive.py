"""DIVE's layout, on a folder of that form made from rendered lectures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vtoken.bench import dive
from vtoken.bench.models import byte_tokenizer, random_model
from vtoken.cli import main as cli
from vtoken.errors import InputError, MissingExtraError
from vtoken.families.geometry import geometry
from vtoken.reference.synthetic import render
from vtoken.video.write import write_video

SUBTITLES = "which of these two is the higher of the pair"


def row(video: str, path: str | None, kind: str, answer: str) -> dict[str, Any]:
    """A row with all fields of the published file."""
    asked = {"sub": "Which subtitles appear in the entire video?", "ocr": "Which text does OCR extract?"}[kind]
    told = {"video": video, "video_path": path, "question": asked, "answer": answer, "qid": f"{video}_{kind}"}
    other = {"type": "QA", "frame_count": 30, "width": 168, "height": 112, "fps": 10.0, "segment_start": 0.0}
    return told | other | {"segment_end": 3.0, "speaker_index": 0, "captions": "", "ocr_answer": "", "ocr": ["a", "b"]}


def rows() -> list[dict[str, Any]]:
    """The videos are named as another machine has them, by their file or by their stem."""
    return [
        row("talk1", "/data/lpm/videos/talk1.mp4", "sub", SUBTITLES),
        row("talk2.mp4", None, "ocr", "Slide One Results 42"),
        row("talk1", None, "ocr", "Another Slide"),
        row("talk2.mp4", None, "sub", "good morning"),
        row("gone", "videos/gone.mp4", "sub", "never seen"),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    made = tmp_path_factory.mktemp("dive")
    (made / "videos" / "part").mkdir(parents=True)
    write_video(made / "videos" / "talk1.mp4", render("slides", 3.0, 10.0, (112, 168)))
    write_video(made / "videos" / "part" / "talk2.mp4", render("slides", 2.0, 10.0, (112, 168), seed=1))
    parquet.write_table(arrow.Table.from_pylist(rows()), made / "LPM_videos.parquet")
    (made / "LPM_slides.parquet").write_bytes((made / "LPM_videos.parquet").read_bytes())
    return made


def lines(folder: Path, found: list[dict[str, Any]]) -> Path:
    """The same videos under an index of JSON lines."""
    folder.mkdir(exist_ok=True)
    (folder / "talk1.mp4").touch()
    (folder / "LPM_videos.jsonl").write_text("\n".join(map(json.dumps, found)) + "\n")
    return folder


def test_questions_are_grouped_by_video_and_missing_videos_are_told(folder: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 3 videos are missing"):
        data = dive.read(folder)
    assert [c.name for c in data.clips] == ["videos/talk1.mp4", "videos/part/talk2.mp4"]
    assert [[q.task for q in c.questions] for c in data.clips] == [["subtitles", "ocr"], ["ocr", "subtitles"]]
    assert data.clips[0].questions[0].answer == SUBTITLES and data.clips[0].questions[0].held is None
    assert (data.score, data.new_tokens, data.tasks) == ("f1", 64, ("subtitles", "ocr"))
    assert data.clips[1].source() == str(folder / "videos" / "part" / "talk2.mp4")
    with pytest.warns(UserWarning, match="missing"):
        assert len(dive.read(folder, clips=1).clips) == 1


def test_json_lines_read_the_same(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").symlink_to(folder / "videos")
    for name in ("talk1.mp4", "talk2.mp4"):
        (tmp_path / name).write_bytes(next(folder.rglob(name)).read_bytes())
    with pytest.warns(UserWarning, match="missing"):
        one = dive.read(lines(tmp_path, rows()))
    with pytest.warns(UserWarning, match="missing"):
        other = dive.read(folder)
    assert [c.questions for c in one.clips] == [c.questions for c in other.clips]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer": None}, "row 1: field 'answer' is None"),
        ({"qid": 7}, "field 'qid' is 7"),
        ({"question": " "}, "field 'question' is ' '"),
        ({"video": "x", "video_path": "../../secret.mp4"}, "none of its 1 videos is below"),
    ],
)
def test_bad_rows(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        dive.read(lines(tmp_path / "d", [rows()[0] | change]))
    assert told in str(caught.value)


def test_files_that_are_no_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither LPM_videos.parquet nor LPM_videos.jsonl"):
        dive.read(tmp_path)
    (tmp_path / "LPM_videos.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match="line 1: no JSON object"):
        dive.read(tmp_path)
    pytest.importorskip("pyarrow")
    (tmp_path / "LPM_videos.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="no Parquet file that can be read"):
        dive.read(tmp_path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "LPM_videos.parquet").touch()
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"vtoken\[bench\]"):
        dive.read(tmp_path)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(geometry("qwen2.5-vl-3b")).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--plans", "grt", "--fps", "2", "--max-new-tokens", "3"]
    assert cli.main(["bench", "dive", "--data", str(folder), *words, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "1 of 3 videos are missing" in told.err and "token F1 by task" in told.out
    assert all(
        name in told.out for name in ("subtitles", "ocr", "CER", "WER", "DIVE Educational: 2 clips, 4 questions")
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 5 and {r["frames"] for r in rows} == {4, 6}
    gone = cli.main(["bench", "dive", "--data", str(tmp_path)])
    assert gone == 2 and "neither LPM_videos" in capsys.readouterr().err
