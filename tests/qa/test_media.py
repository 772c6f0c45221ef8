"""What ``ask`` takes as a video: bytes, file objects, several videos, images between them, and a number of frames."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pillow

import vtoken
from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from tests.qa import processors as real
from tests.video.made import film
from vtoken.errors import InputError, MissingFileError, VideoError
from vtoken.qa.media import Image, Video, media_of
from vtoken.video import choice

OPTIONS: dict[str, Any] = {"plan": "grt", "max_new_tokens": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "block.mp4"
    return film(path, [i / 12 for i in range(24)], size=(112, 112), rate=12)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of temporary files, which must be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.glob("vtoken-*"))


def ask(video: Any, **options: Any) -> vtoken.Answer:
    model = model_of("qwen2_5_vl")
    return vtoken.ask(model, tokenizer_of(model), video, "what moves?", **OPTIONS | options)


class Pipe:
    """A file object that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._rest.read(size)


def test_bytes_and_file_objects_are_the_file(clip: Path, temporary: Path) -> None:
    data = clip.read_bytes()
    want = ask(clip, fps=4)
    late = io.BytesIO(data)
    late.seek(100)
    with open(clip, "rb") as file, open(clip, "rb", buffering=0) as raw, tempfile.TemporaryFile() as nameless:
        nameless.write(data)
        held = data, bytearray(data), memoryview(data), io.BytesIO(data), late
        for source in (*held, file, raw, nameless, Pipe(data)):
            answer = ask(source, fps=4)
            assert answer.tokens.tolist() == want.tokens.tolist()
            assert answer.report.frames == want.report.frames and answer.report.notes == want.report.notes
        assert late.tell() == 100 and nameless.tell() == len(data)
    assert clip.exists()


def test_a_file_object_is_read_with_every_backend_and_twice(clip: Path, temporary: Path) -> None:
    for backend in ("pyav", "opencv"):
        with vtoken.open_video(io.BytesIO(clip.read_bytes()), fps=3, backend=backend) as reader:
            first, second = ([frames.pts.tolist() for frames in reader] for _ in range(2))
            assert first == second and reader.source == "BytesIO"
            assert len(list(temporary.glob("vtoken-*"))) == 1
    reader = vtoken.open_video(clip.read_bytes())
    assert list(temporary.glob("vtoken-*"))
    del reader  # never closed


@pytest.mark.parametrize(
    ("source", "error", "told"),
    [
        (b"", VideoError, "bytes is empty"),
        (b"no video at all, only words", VideoError, "bytes: not a video"),
        (io.StringIO("text"), InputError, "open its file with 'rb'"),
        (io.BytesIO(b"#EXTM3U\n/etc/passwd\n"), VideoError, "BytesIO: a playlist"),
        (io.BytesIO(b"ffconcat version 1.0\nfile /etc/passwd\n"), VideoError, "BytesIO: a playlist"),
    ],
)
def test_what_is_no_video_in_bytes(source: Any, error: type[Exception], told: str, temporary: Path) -> None:
    with pytest.raises(error) as caught:
        vtoken.open_video(source)
    assert told in str(caught.value) and str(temporary) not in str(caught.value)


def test_a_closed_file_is_told() -> None:
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(VideoError, match="cannot be read"):
        vtoken.open_video(closed)


def test_an_animation_in_bytes(temporary: Path) -> None:
    buffer = io.BytesIO()
    frames = [pillow.fromarray(frame) for frame in moving_block(4, 64, 64)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=250)
    with vtoken.open_video(buffer.getvalue()) as reader:
        assert [t for frames in reader for t in frames.pts] == [0, 0.25, 0.5, 0.75]


def sampled(source: Any, **options: Any) -> list[float]:
    with vtoken.open_video(source, **options) as reader:
        found = [float(t) for frames in reader for t in frames.pts]
        assert reader.expected == len(found)
        return found


@pytest.mark.parametrize("number", [1, 2, 5, 7, 12, 23, 24])
@pytest.mark.parametrize(("start", "end"), [(None, None), (0.5, None), (0.25, 1.5)])
def test_num_frames_gives_exactly_so_many(clip: Path, number: int, start: float | None, end: float | None) -> None:
    array = moving_block(24, 112, 112)
    for source, options in ((clip, {}), (array, {"native_fps": 12}), (clip.read_bytes(), {})):
        found = sampled(source, num_frames=number, start=start, end=end, **options)
        inside = [i / 12 for i in range(24) if (start or 0) <= i / 12 + 1e-9 and i / 12 < (end or 9)]
        assert len(found) == min(number, len(inside))
        step = len(inside) / 12 / number
        if number <= len(inside):
            assert all(abs(t - (start or 0) - i * step) <= 1 / 24 + 2e-3 for i, t in enumerate(found))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_even_times_of_any_clip(data: st.DataObject) -> None:
    """Also of variable rates: rising, exact in number, and no frame twice."""
    gaps = data.draw(st.lists(st.sampled_from([0.001, 0.033, 0.04, 0.5, 2.0]), min_size=1, max_size=40))
    times = [round(float(t), 3) for t in np.cumsum([0, *gaps])]
    number = data.draw(st.integers(1, 50))
    start = data.draw(st.sampled_from([0.0, times[len(times) // 2]]))
    inside = choice.within(times, start, float("inf"))
    taken = choice.even(times, start, float("inf"), 25.0, number)
    assert len(taken) == min(number, len(inside)) and taken == sorted(set(taken))
    assert all(0 <= i < len(inside) for i in taken) and (taken[0] == 0 or number == 1 or inside[0] > start)


def test_num_frames_of_ask(clip: Path) -> None:
    answer = ask(clip, num_frames=6)
    assert len(answer.report.frames[0]) == 6 and answer.report.frames[0] == sampled(clip, num_frames=6)
    assert answer.clip.seconds == pytest.approx(2.0, abs=2e-3)  # the clip's own length, also for budgets a second
    assert len(ask(clip, sampling=vtoken.Sampling(num_frames=5)).report.frames[0]) == 5
    few = ask(moving_block(3, 112, 112), native_fps=2, num_frames=8)
    assert len(few.report.frames[0]) == 3 and any("num_frames=8" in note for note in few.report.notes)
    for options, told in (
        ({"fps": 2, "num_frames": 4}, "fps=2"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": 2.5}, "num_frames=2.5"),
        ({"num_frames": 4, "max_frames": 2}, "max_frames=2"),
    ):
        with pytest.raises(InputError, match=told):
            ask(clip, **options)


def kinds(given: Any) -> list[str]:
    return [type(one).__name__ for one in media_of(given)]


def test_which_items_a_list_holds() -> None:
    picture, frame = pillow.new("RGB", (8, 8)), np.zeros((8, 8, 3), np.uint8)
    video = np.zeros((2, 8, 8, 3), np.uint8)
    assert kinds("a.mp4") == kinds(b"x") == kinds(video) == kinds([frame, frame]) == kinds([picture]) == ["Video"]
    assert kinds(["a.png", "b.jpg"]) == kinds([Path("a.png"), picture, frame]) == ["Video"]  # frames
    assert kinds(["a.mp4", "b.mkv"]) == kinds([b"x", io.BytesIO(b"y")]) == ["Video", "Video"]
    assert kinds([picture, "a.mp4", "b.png", frame]) == ["Image", "Video", "Image", "Image"]
    assert kinds([video, picture, torch.zeros(2, 8, 8, 3, dtype=torch.uint8)]) == ["Video", "Image", "Video"]
    assert kinds([[frame, frame], picture]) == ["Video", "Image"]
    assert kinds([Image("a.tiff"), Video("b.png")]) == ["Image", "Video"]
    assert kinds([]) == ["Video"]


def test_pictures_of_every_source(tmp_path: Path) -> None:
    pixels = moving_block(1, 40, 60)[0]
    path, buffer = tmp_path / "a.png", io.BytesIO()
    pillow.fromarray(pixels).save(path)
    pillow.fromarray(pixels).save(buffer, "PNG")
    for source in (path, str(path), buffer.getvalue(), io.BytesIO(buffer.getvalue()), pixels, pillow.open(path)):
        assert np.array_equal(np.asarray(Image(source).load()), pixels)
    deep = tmp_path / "deep.png"
    pillow.fromarray(np.full((4, 4), 40_000, np.uint16)).save(deep)  # 16 bits are scaled, not clipped
    assert np.asarray(Image(deep).load()).max() == 40_000 >> 8
    with pytest.raises(MissingFileError, match=r"none\.png"):
        Image(tmp_path / "none.png").load()
    for wrong, error in ((b"no picture", InputError), (3, InputError), (np.zeros((4, 4), np.uint8), InputError)):
        with pytest.raises(error, match="image"):
            Image(wrong).load()
    with pytest.raises((InputError, VideoError)):
        Image(pillow.new("F", (4, 4))).load()


def test_several_videos_and_images_in_the_order_given(clip: Path) -> None:
    """The prompt is that of the stock processor, and the answer that of the stock model on its inputs."""
    for name in ("qwen2_5_vl", "qwen3_vl"):
        model, words = model_of(name), real.tokenizer_of(name, False)
        words.chat_template = real.template_of(name)
        processor = real.processor_of(name, words, [], real.template_of(name))
        processor.video_processor = processor.image_processor  # that of a video needs torchvision
        picture = pillow.fromarray(moving_block(1, 112, 84, seed=5)[0])
        seen: list[dict[str, Any]] = []
        hook = model.register_forward_pre_hook(lambda _, __, k, s=seen: s.append(dict(k)), with_kwargs=True)
        options = {"fps": 2, "max_new_tokens": 2, "plan": "none"}
        try:
            forth = vtoken.ask(model, processor, [picture, clip, Image(picture), clip], "which?", **options)
            back = vtoken.ask(model, processor, [clip, clip, picture, picture], "which?", **options)
        finally:
            hook.remove()
        assert len(forth.clips) == len(forth.cell_states) == len(forth.report.frames) == 2
        assert forth.report.cells == back.report.cells
        marks = {model.config.image_token_id: "i", model.config.video_token_id: "v"}

        def order(ids: Any, marks: dict[int, str] = marks) -> str:
            """The items of a prompt; what stands between two of them is no placeholder."""
            out = ""
            for i in ids[0].tolist():
                mark = marks.get(i, "" if i in range(40, 60) else "")
                out += mark if mark and (not out or out[-1] != mark) else ""
            return out

        prompts_of = [s["input_ids"] for s in seen if s["input_ids"].shape[1] > 20]
        assert order(prompts_of[0]) == "iviv" and order(prompts_of[-1]) == "vi"


@pytest.mark.parametrize("name", ["llava_next_video", "llava_onevision", "llava"])
@pytest.mark.parametrize("images", [1, 2])
def test_images_beside_a_video_are_those_of_the_processor(name: str, images: int, clip: Path) -> None:
    """Ids and image features are those of the stock processor and model, in the order given."""
    model, words = model_of(name), real.tokenizer_of(name, False)
    processor = real.processor_of(name, words, [], real.template_of(name))
    processor.video_processor = None  # that of a video needs torchvision
    if name != "llava":  # tiles of the tiny model's size
        side = model.config.vision_config.image_size
        processor.image_processor.crop_size = {"height": side, "width": side}
        processor.image_processor.image_grid_pinpoints = model.config.image_grid_pinpoints
        processor.num_additional_image_tokens = 1  # the CLS token, as the checkpoints of LLaVA-NeXT-Video say
    shown = [pillow.fromarray(moving_block(1, 84, 168, seed=i)[0]) for i in range(images)]
    seen: list[dict[str, Any]] = []
    hook = model.register_forward_pre_hook(lambda _, __, k: seen.append(dict(k)), with_kwargs=True)
    try:
        answer = vtoken.ask(
            model, processor, [shown[0], clip, *shown[1:]], "which?", fps=2, **OPTIONS | {"plan": "none"}
        )
        assert vtoken.ask(model, processor, [clip, *shown], "which?", fps=2, **OPTIONS).report.tokens > 0
    finally:
        hook.remove()
    made = seen[0]
    ids, token = made["input_ids"][0], model.config.image_token_id
    assert len(answer.tokens) == 2
    if name == "llava":  # every frame and every image is an image
        side = (84 // 14) ** 2
        assert int((ids == token).sum()) == side * (4 + images) and len(answer.clips) == 1 + images
        with torch.no_grad():
            stock = processor(images=shown, text="<image>" * images, return_tensors="pt")["pixel_values"]
            expected = torch.cat(list(model.get_image_features(pixel_values=stock).pooler_output))
        got = torch.cat(list(made["mm_encoder_outputs"]["image"].pooler_output))
        wanted = [expected[:side], expected[side:]]
        torch.testing.assert_close(torch.cat([got[:side], got[5 * side :]]), torch.cat(wanted), atol=2e-2, rtol=0)
        return
    stock = processor(images=[shown], text="<image>" * images, return_tensors="pt")
    assert int((ids == token).sum()) == int((stock["input_ids"] == token).sum())
    first = (ids == token).nonzero()[0]
    assert first < (ids == model.config.video_token_id).nonzero()[0] and answer.report.frames == [[0, 0.5, 1, 1.5]]
    named = {n: v for n, v in stock.items() if n in ("pixel_values", "image_sizes", "batch_num_images")}
    with torch.no_grad():
        expected = torch.cat(list(model.get_image_features(**named).pooler_output))
    got = torch.cat(list(made["mm_encoder_outputs"]["image"].pooler_output))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llava_next_video", "llava_onevision"])
def test_images_need_a_processor_and_two_clips_are_twice_one(name: str, clip: Path) -> None:
    model = model_of(name)
    with pytest.raises(InputError, match="image_processor, not a tokenizer"):
        vtoken.ask(model, tokenizer_of(model), [clip, pillow.new("RGB", (9, 9))], "what?", plan="none")
    two = vtoken.ask(model, tokenizer_of(model), [clip, clip], "what?", plan="grt", fps=3, max_new_tokens=2)
    one = vtoken.ask(model, tokenizer_of(model), clip, "what?", plan="grt", fps=3, max_new_tokens=2)
    assert two.report.tokens == 2 * one.report.tokens and np.array_equal(two.cell_states[0], two.cell_states[1])


def test_images_alone_are_refused() -> None:
    with pytest.raises(InputError, match="needs a video beside"):
        ask(vtoken.Image(pillow.new("RGB", (9, 9))))


def test_public_names_are_lazy_and_whole() -> None:
    for name in vtoken.__all__:
        assert getattr(vtoken, name) is not None
    assert {"Image", "Video", "Sampling", "Session", "Gate", "Scorer", "Context", "Method"} <= set(vtoken.__all__)
    assert os.path.basename(vtoken.Sampling.__module__).endswith("read")
