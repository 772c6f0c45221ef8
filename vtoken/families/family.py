"""Family: what differs between model families, such as where visual rows come from and what each row is.

The base class serves every family whose features are rows consumed in the order of the placeholders; a family with
newline rows, grids or an encoder that can run on some patches only overrides what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.encoders import signals
from vtoken.encoders.carry import Carry
from vtoken.encoders.compat import has_cls, layers_of
from vtoken.encoders.names import split, within
from vtoken.encoders.packed import Thinning
from vtoken.errors import InputError, UnsupportedError
from vtoken.families import compat
from vtoken.families.chunks import Early
from vtoken.families.features import Clip, Features, Pictures
from vtoken.families.layout import Layout, square
from vtoken.methods.registry import has

PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


@dataclass(frozen=True)
class Family:
    """A model family by its ``config.model_type``.

    Attributes:
        name: the model type.
        title: its usual name.
        taps: what can be read from its encoder, see ``vtoken.encoders.signals``: nothing, the attention of its layers
            (``PATCHES``), or that and a CLS token before the patches (``CLS``).
        sparse: modalities whose encoder can run on the kept patches only.
        thins: modalities in whose encoder tokens can be merged or dropped.
        tensor: modalities whose feature container is one tensor instead of a list.
        drops: keyword arguments that describe pixels and must not reach the model after encoding.
        any_size: whether its grid follows the size of the frame, and ``vtoken.ask`` reads its videos.
        sound: keyword arguments that describe sound; they stay in the call, and the prefill takes them.
        clip_modality: the modality that gated clips replace: "video", or "image" where frames are passed as images.
        no_beams: modalities with which the stock model itself cannot beam search.
        prefix: whether text of the prompt attends to what follows it (a prefix language model).
    """

    name: str
    title: str
    taps: frozenset[str] = frozenset()
    sparse: frozenset[str] = frozenset()
    thins: frozenset[str] = frozenset()
    tensor: frozenset[str] = frozenset()
    drops: tuple[str, ...] = ()
    any_size: bool = False
    sound: tuple[str, ...] = ()
    clip_modality: str = "video"
    no_beams: frozenset[str] = frozenset()
    prefix: bool = False

    @property
    def gives(self) -> frozenset[str]:
        """Signals its encoder can give: every registered one that its taps allow; ``keys@*`` stands for any layer."""
        return signals.given(self.taps)

    def encode(self, model: Any, modality: str, inputs: dict[str, Any], wants: frozenset[str]) -> Features:
        """Run the stock encoder and name its rows."""
        out = self.features(model, modality, inputs)
        rows = self.rows(out.pooler_output)
        layout = self.layout(model, modality, inputs, self.lengths(out.pooler_output))
        n = len(rows)
        if n != len(layout.position):
            raise InputError(
                f"{self.title}: {n} {modality} features, {len(layout.position)} rows expected from the grid"
            )
        return Features(
            rows, torch.arange(n), layout, torch.ones(n, dtype=torch.float32), {}, int((~layout.structural).sum()), out
        )

    def offered(self, wants: frozenset[str]) -> frozenset[str]:
        """The wanted signals that its encoder can give."""
        return frozenset(name for name in wants if has(self.gives, name) and not name.endswith("@*"))

    def available(self, tower: Any, wants: frozenset[str]) -> frozenset[str]:
        """The wanted signals that this very tower can give: by its layers, and by its CLS token."""
        wants = within(self.offered(wants), len(layers_of(tower)))
        return wants if has_cls(tower) else frozenset(n for n in wants if "cls" not in signals.get(split(n)[0]).taps)

    def features(self, model: Any, modality: str, inputs: dict[str, Any]) -> Any:
        """The stock ``get_image_features`` or ``get_video_features`` on the arguments that it takes."""
        return compat.features(model, modality, inputs)

    def rows(self, pooled: Any) -> Tensor:
        """All feature rows [R, D] of a list or tensor container."""
        return pooled.flatten(0, -2) if isinstance(pooled, Tensor) else torch.cat([p.flatten(0, -2) for p in pooled])

    def lengths(self, pooled: Any) -> list[int]:
        """Rows of each item."""
        return [p.shape[:-1].numel() for p in pooled]

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        """Square grids where the count is a square, else one line; families with more structure override this."""
        return Layout.of_grids([square(n) for n in lengths])

    def items(
        self,
        modality: str,
        layout: Layout,
        sample: Tensor,
        column: Tensor,
        ids: Tensor,
        clips: list[Clip] | None,
    ) -> list[int]:
        """Placeholder rows of each image or video, in order; no method mixes two of them.

        An image with its tiles is one item: LLaVA-NeXT and LLaVA-OneVision list images, InternVL writes the tiles of
        an image as one run of placeholders, Idefics3 and SmolVLM end an image with its whole view. A video is one item
        in the families that have videos. Frames that a processor writes as images of their own are items of their own
        (InternVL, SmolVLM, LLaVA-1.5), and so are the crops of Gemma3, whose prompt calls them images: nothing in the
        ids says that they belong together. Frames that vtoken itself gated are one video in every family.

        Args:
            sample, column: int64 [R], place of every placeholder row.
            ids: int64 [B, N], the prompt.
            clips: what the rows show, where vtoken made clips of them: then a clip is an item.
        """
        if clips is None or modality != self.clip_modality:
            return layout.lengths
        steps = [len(c.gate.keep) for c in clips]
        ends = [0]
        for n in steps:  # lengths of frames join to those of their clip
            ends.append(ends[-1] + n)
        if len(layout.lengths) == len(clips):
            return layout.lengths
        return [sum(layout.lengths[a:b]) for a, b in zip(ends, ends[1:], strict=False)]

    def placeholders(self, model: Any, modality: str, input_ids: Tensor, inputs: dict[str, Any]) -> Tensor:
        """bool [B, N], where the rows of a modality go."""
        token = getattr(model.config, f"{modality}_token_id", None)
        if token is None:
            token = getattr(model.config, f"{modality}_token_index")
        return input_ids == token

    def pack(self, modality: str, features: Features, parts: list[Tensor]) -> Any:
        """The family's output object holding the kept rows, one entry a sample (samples without rows left out)."""
        present: Any = [p for p in parts if len(p)] or parts[:1]
        if modality not in self.tensor:
            return compat.outputs(present)
        equal = len({len(p) for p in present}) == 1
        # one row an entry, so that generate can tell the prompts apart when it repeats them for beams
        return compat.outputs(torch.stack(present) if equal else torch.cat(present)[:, None])

    def preprocess(self, model: Any, given: Any = None) -> Any:
        """How frames become pixels for this model: ``given``, or the preset of the family, with the model's patches."""
        raise UnsupportedError(f"vtoken has no preprocessing for {self.title}; use what its own processor makes")

    def pathway_rows(
        self, model: Any, modality: str, inputs: dict[str, Any], clips: list[Clip], features: Features
    ) -> dict[str, Tensor]:
        """Pathway signals per placeholder row (dense encoder)."""
        names = sorted(clips[0].signals) if clips else []
        cells = {n: torch.cat([torch.from_numpy(c.signals[n]).flatten(0, 2) for c in clips]) for n in names}
        return {n: v.to(features.x.device) for n, v in cells.items()}

    def clips(
        self,
        model: Any,
        inputs: dict[str, Any],
        gate: Any,
        fps: float | None,
        given: Any,
        pathways: Sequence[Any] = (),
    ) -> list[Clip]:
        """Gate the video that an ordinary processor made; only families with a sparse encoder can.

        Args:
            gate: None keeps every cell.
            pathways: run on all frames; their signals are in ``Clip.signals``.
            fps: sampling rate where the inputs do not hold it.
            given: the ``Preprocessor`` of the processor in use, or None for the family's preset.
        """
        raise UnsupportedError(f"{self.title} cannot skip patches before its encoder; 'evs' drops after it")

    def prompt(self, model: Any, tokenizer: Any, clip: Clip) -> tuple[list[int], list[int] | Tensor, dict[str, Any]]:
        """How a clip enters a prompt.

        Returns:
            ids that a chat template writes for one video, ids that take their place (one placeholder a row of the
            language model, nothing dropped yet), and further arguments of ``generate``.
        """
        raise UnsupportedError(f"vtoken does not know how {self.title} writes a video into its prompt")

    def chunk(self, model: Any, tokenizer: Any, clip: Clip) -> list[int] | Tensor:
        """The ids of a chunk of a video, as in ``prompt``, without what comes once a video."""
        return self.prompt(model, tokenizer, clip)[1]

    def ending(self, model: Any) -> tuple[list[int], Tensor | None]:
        """What comes at the end of a video once: ids, and the features [n, D] of those that are placeholders."""
        return [], None

    def images(self, model: Any, processor: Any, pictures: list[Any]) -> Pictures | None:
        """Images that are shown beside a clip; None for none.

        Args:
            pictures: PIL images in RGB.

        Raises:
            InputError: a processor without image settings.
            UnsupportedError: a family that ``ask`` does not serve with images.
        """
        if not pictures:
            return None
        raise UnsupportedError(
            f"vtoken.ask does not know how {self.title} takes images beside a video; call model.generate with what its "
            "own processor makes"
        )

    def read_images(self, processor: Any, pictures: list[Any]) -> dict[str, Any]:
        """What the processor's own image processor makes of the images of one prompt.

        Raises:
            InputError: it has none.
        """
        reader = getattr(processor, "image_processor", None)
        if reader is None:
            raise InputError(f"images need the processor of {self.title} with its image_processor, not a tokenizer")
        return dict(reader(images=[pictures], return_tensors="pt"))

    def frames_per_step(self, model: Any) -> int:
        """Frames in a time step of a video."""
        return 1

    def full_clips(self, model: Any, modality: str, inputs: dict[str, Any], fps: float | None) -> list[Clip]:
        """The images or videos that an ordinary processor made, as clips with every cell kept.

        Args:
            fps: sampling rate of videos where the inputs do not hold it.
        """
        raise UnsupportedError(
            f"tokens cannot leave inside the encoder of {self.title}; 'divprune' drops them after it"
        )

    def early(self, model: Any, wants: frozenset[str], hold: bool) -> Early | None:
        """What encodes one clip while it is read, as ``encode_clips`` would; None where that takes the whole clip."""
        return None

    def encode_clips(
        self,
        model: Any,
        clips: list[Clip],
        wants: frozenset[str],
        thin: Thinning | None = None,
        reuse: bool = False,
        hold: bool = False,
        carry: Carry | None = None,
    ) -> Features:
        """Run the encoder on the kept patches alone; with ``thin`` layers merge or drop more of them.

        Args:
            reuse: run it on all patches, of which the skipped take the embeddings of the last kept ones in their
                place (``Gate.apply``); not with ``thin``.
            hold: kept patches attend to the keys and values that the skipped patches of their step had when last
                encoded, layer by layer (``encoders/held.py``); neither with ``thin`` nor with ``reuse``.
            carry: the one clip is a chunk of a video, whose references count from its first step (-1 is before it), and
                this is what earlier chunks left. What comes once a video (a newline row at its end) is left out.

        Raises:
            UnsupportedError: the family's encoder cannot, or two of them together.
        """
        raise UnsupportedError(f"{self.title} cannot skip patches before its encoder; 'evs' drops after it")


def has_pixels(inputs: dict[str, Any], modality: str) -> bool:
    """Whether the inputs hold pixels of a modality."""
    return any(inputs.get(name) is not None for name in PIXELS[modality])
