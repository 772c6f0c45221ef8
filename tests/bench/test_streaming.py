"""Rows of OVO-Bench and StreamingBench, on small made-up folders of their form."""

from __future__ import annotations

import json

import pytest

from vtoken.bench.streaming import averages, ovo, seconds, streaming_bench
from vtoken.errors import InputError

OVO = [
    {
        "id": 1,
        "task": "EPM",
        "video": "a/one.mp4",
        "realtime": 30,
        "question": "Where was the cup?",
        "options": ["table", "A. sink", "floor", "shelf"],
        "gt": 1,
    },
    {
        "id": 2,
        "task": "OCR",
        "video": "one.mp4",
        "realtime": 12.5,
        "question": "What does it say?",
        "options": ["a", "b", "c", "d"],
        "gt": 0,
    },
    {
        "id": 3,
        "task": "REC",
        "video": "two.mp4",
        "activity": "jumps",
        "test_info": [{"realtime": 4, "count": 0}, {"realtime": 9, "count": 2}],
    },
    {
        "id": 4,
        "task": "SSR",
        "video": "two.mp4",
        "test_info": [{"realtime": 3, "type": 0, "step": "cut the onion"}, {"realtime": 6, "type": 1, "step": "stir"}],
    },
    {
        "id": 5,
        "task": "CRR",
        "video": "two.mp4",
        "question": "Who comes in?",
        "ask_time": 2,
        "clue_time": 7,
        "test_info": [{"realtime": 5, "type": 0}, {"realtime": 8, "type": 1}],
    },
]
STREAMING = [
    {
        "video": "videos/one.mp4",
        "questions": [
            {
                "task_type": "Object Perception",
                "question": "What is red?",
                "time_stamp": "00:02:05",
                "answer": "B",
                "options": ["A. car", "B. cup", "C. hat", "D. dog"],
            },
            {
                "task_type": "Counting",
                "question": "How many?",
                "time_stamp": "00:00:20",
                "answer": "C",
                "options": ["A. 1", "B. 2", "C. 3", "D. 4"],
            },
        ],
    },
]


def made(folder, rows, name="rows.json", videos=("a/one.mp4", "two.mp4")):
    for video in videos:
        (folder / video).parent.mkdir(parents=True, exist_ok=True)
        (folder / video).write_bytes(b"-")
    (folder / name).write_text(json.dumps(rows))
    return folder


def test_ovo(tmp_path):
    found = ovo(made(tmp_path, OVO))
    assert [(q.id, q.task, q.group, q.time, q.answer) for q in found] == [
        ("1", "EPM", "backward", 30.0, "B"),
        ("2", "OCR", "realtime", 12.5, "A"),
        ("3-0", "REC", "forward", 4.0, "0"),
        ("3-1", "REC", "forward", 9.0, "2"),
        ("4-0", "SSR", "forward", 3.0, "No"),
        ("4-1", "SSR", "forward", 6.0, "Yes"),
        ("5-0", "CRR", "forward", 5.0, "No"),
        ("5-1", "CRR", "forward", 8.0, "Yes"),
    ]
    assert found[0].options == ("table", "sink", "floor", "shelf") and found[0].start == 0
    assert found[0].video == found[1].video == tmp_path / "a/one.mp4"
    assert found[0].prompt.splitlines()[2] == "B. sink"
    assert "jumps" in found[2].question and "a number" in found[2].prompt
    assert "cut the onion" in found[4].question and "Yes or No" in found[4].prompt
    assert found[6].clue == 7.0


def test_streaming_bench(tmp_path):
    folder = made(tmp_path, STREAMING, "questions_real.json", ("videos/one.mp4",))
    found = streaming_bench(folder)
    assert [(q.task, q.group, q.start, q.time, q.answer) for q in found] == [
        ("Object Perception", "real", 65.0, 125.0, "B"),
        ("Counting", "real", 0.0, 20.0, "C"),
    ]
    assert found[0].options == ("car", "cup", "hat", "dog")
    assert streaming_bench(folder, last=None)[0].start == 0
    with pytest.raises(InputError, match="last=0"):
        streaming_bench(folder, last=0)


def test_right(tmp_path):
    first, _, _, count, *_ = ovo(made(tmp_path, OVO))
    for text, good in (("B", True), ("b. sink", True), ("(B)", True), ("Because", False), ("A", False), ("", False)):
        assert first.right(text) is good, text
    for text, good in (("2", True), ("2 times", True), ("20", False), ("12", False)):
        assert count.right(text) is good, text


def test_averages_are_means_of_tasks(tmp_path):
    found = ovo(made(tmp_path, OVO))
    out = averages([(q, q.id in ("1", "3-0", "4-0", "4-1")) for q in found])
    assert (out["EPM"], out["OCR"], out["REC"], out["SSR"], out["CRR"]) == (100, 0, 50, 100, 0)
    assert (out["backward"], out["realtime"], out["forward"]) == (100, 0, 50) and out["mean"] == 50


def test_missing_videos(tmp_path):
    folder = made(tmp_path, OVO, videos=("two.mp4",))
    with pytest.warns(UserWarning, match="2 videos are missing"):
        assert {q.task for q in ovo(folder)} == {"REC", "SSR", "CRR"}
    (folder / "two.mp4").unlink()
    with pytest.raises(InputError, match="none of the 3 videos"):
        ovo(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gt": 4}, "gt=4"),
        ({"gt": True}, "gt=True"),
        ({"realtime": None}, "'realtime' is missing"),
        ({"realtime": "soon"}, "no time"),
        ({"task": "XYZ"}, "none of OVO-Bench's"),
        ({"options": []}, "'options' is missing"),
    ],
)
def test_damaged_rows(tmp_path, change, says):
    with pytest.raises(InputError, match=says) as caught:
        ovo(made(tmp_path, [OVO[0] | change]))
    assert "rows.json, row 1" in str(caught.value)


def test_damaged_files(tmp_path):
    with pytest.raises(InputError, match="no JSON file"):
        ovo(tmp_path)
    made(tmp_path, {"rows": []})
    with pytest.raises(InputError, match="a list of rows"):
        ovo(tmp_path)
    (tmp_path / "rows.json").write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        ovo(tmp_path)


@pytest.mark.parametrize(("value", "expected"), [(3, 3.0), ("7.5", 7.5), ("03:20", 200.0), ("01:00:01", 3601.0)])
def test_seconds(value, expected):
    assert seconds(value) == expected


@pytest.mark.parametrize("value", ["", "1:2:3:4", "-5", "x", True, float("nan")])
def test_no_seconds(value):
    with pytest.raises(InputError):
        seconds(value)
