"""The real processor classes of the families that ``ask`` serves, without torchvision.

The classes of video processors need torchvision, so a stand-in gives what they would: pixels or grids of a clip that
was read already. Templates, placeholders, time stamps and begin tokens are the processors' own code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.video_utils import VideoMetadata

from tests.families.tiny import model_of
from vtoken.families.features import Clip

BEGIN, END, TURN, CLOSE, THINK = 2, 1, 20, 21, 22
NAMES = {BEGIN: "<s>", END: "</s>", TURN: "<|im_start|>", CLOSE: "<|im_end|>", THINK: "<think>"}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:?!<>/|_\n"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'video' %}VIDEO"
    "{% elif c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>{% endif %}{% endif %}"
)
PLACES = {
    "llava": ("<video>", "<image>\n"),
    "llava_siglip": ("<video>", "<image>\n"),
    "llava_next_video": ("<video>\n", "<image>\n"),
    "llava_onevision": ("<video>\n", "<image>\n"),
}
QWEN = ("<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>")


def tokenizer_of(name: str, begin: bool) -> Any:
    """A character tokenizer with the family's placeholders; with ``begin`` it writes <s> as Llama's does."""
    config = model_of(name).config
    words = dict(NAMES)
    video, image = PLACES.get(name, ("<|video_pad|>", "<|image_pad|>"))
    words[config.image_token_id] = image.strip()
    if getattr(config, "video_token_id", None) is not None:
        words[config.video_token_id] = video.strip()
    if name.startswith("qwen"):
        words |= {config.vision_start_token_id: "<|vision_start|>", config.vision_end_token_id: "<|vision_end|>"}
    letters = iter(LETTERS)
    size = config.get_text_config().vocab_size
    every = {i: words.get(i) or (next(letters, f"w{i}") if i >= 40 else f"w{i}") for i in range(size)}
    core = Tokenizer(models.WordLevel({w: i for i, w in every.items()}, unk_token=every[39]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    if begin:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>" if begin else None, eos_token="</s>", unk_token=every[39]
    )
    special = [w for w in words.values() if w not in ("<s>", "</s>", "<think>")]
    made.add_special_tokens({"additional_special_tokens": special})
    made.add_tokens(["<think>"])
    if begin:
        return made
    made.add_tokens([hf.AddedToken("<s>", special=True)])
    return made


def template_of(name: str, begins: bool = False) -> str:
    """A chat template that writes the family's marks; with ``begins`` it starts with the begin token."""
    video, image = PLACES.get(name, QWEN)
    return ("{{ bos_token }}" if begins else "") + TEMPLATE.replace("VIDEO", video).replace("IMAGE", image)


class Frames:
    """A stand-in for a video processor: what it would make of clips that were read."""

    merge_size, temporal_patch_size = 2, 2
    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(self, clips: list[Clip], side: int) -> None:
        self.clips, self.side = clips, side

    def __call__(self, videos: Any, **_: Any) -> Any:
        grids = [[c.gate.keep.shape[0], *(2 * n for n in c.gate.keep.shape[1:])] for c in self.clips]
        pixels = [np.zeros((len(c.pts), 3, self.side, self.side), np.float32) for c in self.clips]
        rate = 1000.0  # a time in milliseconds is a frame number
        metadata = [
            VideoMetadata(total_num_frames=10**6, fps=rate, frames_indices=np.round(c.pts * rate).astype(int))
            for c in self.clips
        ]
        return hf.BatchFeature(
            {"pixel_values_videos": pixels, "video_grid_thw": np.array(grids), "video_metadata": metadata}
        )


def processor_of(name: str, tokenizer: Any, clips: list[Clip], template: str | None) -> Any:
    """The family's own processor class."""
    config = model_of(name).config
    kind: Any = {
        "llava": hf.LlavaProcessor,
        "llava_siglip": hf.LlavaProcessor,
        "llava_next_video": hf.LlavaNextVideoProcessor,
        "llava_onevision": hf.LlavaOnevisionProcessor,
        "qwen2_vl": hf.Qwen2VLProcessor,
        "qwen2_5_vl": hf.Qwen2_5_VLProcessor,
        "qwen3_vl": hf.Qwen3VLProcessor,
        "qwen3_vl_moe": hf.Qwen3VLProcessor,
        "qwen3_5_moe": hf.Qwen3VLProcessor,
        "qwen3_5": hf.Qwen3VLProcessor,
    }[name]

    class Processor(kind):
        """Takes the stand-in, and images and videos from the conversation without loading them."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

        def to_dict(self) -> dict[str, Any]:
            return {}

        def __repr__(self) -> str:
            return kind.__name__

    Processor.__name__ = kind.__name__
    vision = config.vision_config
    side = getattr(vision, "image_size", 84)
    options: dict[str, Any] = {"tokenizer": tokenizer, "chat_template": template}
    if name.startswith("qwen"):
        pictures: Any = hf.Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size,
            merge_size=2,
            size={"shortest_edge": 56 * 56, "longest_edge": 56 * 56 * 16},
        )
        return Processor(image_processor=pictures, video_processor=Frames(clips, side), **options)
    options["vision_feature_select_strategy"] = config.vision_feature_select_strategy
    siglip = name in ("llava_siglip", "llava_onevision")
    if name.startswith("llava_onevision"):
        pictures = hf.LlavaOnevisionImageProcessorPil(size={"height": side, "width": side})
        count = (side // vision.patch_size) ** 2
        return Processor(
            image_processor=pictures, video_processor=Frames(clips, side), num_image_tokens=count, **options
        )
    options["patch_size"] = vision.patch_size
    if name == "llava_next_video":
        pictures = hf.LlavaNextImageProcessorPil(size={"shortest_edge": side})
        return Processor(image_processor=pictures, video_processor=Frames(clips, side), **options)
    if siglip:
        pictures = hf.SiglipImageProcessorPil(size={"height": side, "width": side})
    else:
        crop = {"height": side, "width": side}
        pictures = hf.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop)
    return Processor(image_processor=pictures, num_additional_image_tokens=0 if siglip else 1, **options)
