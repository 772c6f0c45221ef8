"""vLLM with the plug-in, on the CPU, with tiny random checkpoints: `make test-vllm` runs it in its own environment.

    python -m tests.vllm.run FOLDER [FAMILY ...] [server]

Every line says what was compared; the exit code says whether all of it was right. Nothing is downloaded.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # LLM.apply_model

import numpy as np
import torch

from tests.families.checkpoints import save
from tests.families.tiny import moving_block
from tests.qa.processors import PLACES, QWEN
from tests.vllm import reference, server
from tests.vllm.worker import built
from vtoken.hosts.vllm.plans import gate_of

ARCHITECTURE = {
    "qwen2_5_vl": "VTokenQwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "VTokenQwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "VTokenQwen3VLMoeForConditionalGeneration",
    "llava_onevision": "VTokenLlavaOnevisionForConditionalGeneration",
}
LIMITS = {"max_model_len": 2048, "max_num_batched_tokens": 256, "max_num_seqs": 8, "max_logprobs": 256}
ROOM = {"llava_onevision": {"max_num_batched_tokens": 1024}}  # else vLLM takes videos of up to 16 frames alone
TOKENS = 3
PLANS = ("grt", "grt:threshold=40,run_position=start", "mad:anchors=0", "grt:anchors=(spread:3)")
failed: list[str] = []


def check(name: str, right: bool, **found: Any) -> None:
    """One line of the result."""
    print(json.dumps({"check": name, "right": bool(right), **found}), flush=True)
    if not right:
        failed.append(name)


def engine(folder: Path, plan: str | None = None, name: str = "", **options: Any) -> Any:
    """vLLM with the gated model, or with the stock one."""
    from vllm import LLM

    if plan is not None:
        options.setdefault("hf_overrides", {}).update({"architectures": [ARCHITECTURE[name]], "vtoken": plan})
    many = {"image": 2, "video": 2}
    options = LIMITS | ROOM.get(folder.name, {}) | options
    return LLM(str(folder), dtype="float32", enforce_eager=True, limit_mm_per_prompt=many, seed=0, **options)


def prompt(text: str, clips: list[np.ndarray], pictures: list[Any], plan: str | None = None) -> dict[str, Any]:
    """One request of vLLM."""
    videos = [(clip, reference.metadata(clip) | {"do_sample_frames": False}) for clip in clips]
    media = ({"video": videos} if videos else {}) | ({"image": pictures} if pictures else {})
    return {"prompt": text, "multi_modal_data": media} | ({"mm_processor_kwargs": {"vtoken": plan}} if plan else {})


def answer(llm: Any, prompts: list[dict[str, Any]]) -> list[Any]:
    """Greedy answers with the log-probabilities of the whole vocabulary."""
    from vllm import SamplingParams

    return llm.generate(prompts, SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=256), use_tqdm=False)


def table(output: Any) -> torch.Tensor:
    """float32 [tokens, vocabulary], log-probabilities of an answer."""
    rows = [[step[i].logprob for i in range(len(step))] for step in output.outputs[0].logprobs]
    return torch.tensor(rows)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two answers over the steps behind the same tokens."""
    n = 1
    while n < min(len(a), len(b)) and a[n - 1].argmax() == b[n - 1].argmax():
        n += 1
    return round(float((a[:n] - b[:n]).abs().max()), 6)


def cases(name: str) -> dict[str, tuple[str, list[np.ndarray], list[Any]]]:
    """Text, videos and pictures of some prompts."""
    from PIL import Image

    video, image = (mark.strip() for mark in PLACES.get(name, QWEN))
    short, long = moving_block(8, 112, 112), moving_block(31, 168, 224, seed=1, block=40)
    other = moving_block(8, 112, 140, seed=3, block=50) if name == "llava_onevision" else long
    picture = Image.fromarray(moving_block(1, 112, 140, seed=2)[0])
    return {
        "video": (f"{video}what is this", [long], []),
        # of one length where transformers takes no others
        "two videos": (f"first {video} then {video}which is longer", [short, other], []),
        "image and video": (f"{image} and {video}are they alike", [short], [picture]),
        "text": ("what is this", [], []),
    }


def family(name: str, folder: Path) -> None:
    """All checks of one model family."""
    place, known = save(name, folder / name), cases(name)
    model = reference.Reference(place)
    given = {case: model.inputs(*parts) for case, parts in known.items()}
    llm = engine(place)
    stock = dict(zip(known, answer(llm, [prompt(*parts) for parts in known.values()]), strict=True))
    for case, out in stock.items():
        far = apart(table(out), model.answer(given[case], "none", TOKENS))
        check(f"{name}: stock vLLM and transformers, {case}", far < 1e-3, apart=far)
    del llm
    gc.collect()
    llm = engine(place, "grt", name)
    whole(name, llm, known, stock)
    masks(name, llm, known, model, given)
    gated(name, llm, known, model, given, stock)
    caches(name, llm, known)
    if name == "llava_onevision":
        times(name, llm, known)
        file(name, llm, folder)
    else:
        inside(name, llm, known)
    refused(name, llm, place, known)
    del llm
    gc.collect()
    ranks(name, place, known, model, given)


def whole(name: str, llm: Any, known: dict[str, Any], stock: dict[str, Any]) -> None:
    """All cells kept: the log-probabilities of stock vLLM."""
    outs = answer(llm, [prompt(*parts, "none") for parts in known.values()])
    for case, out in zip(known, outs, strict=True):
        far = apart(table(out), table(stock[case]))
        same = out.prompt_token_ids == stock[case].prompt_token_ids
        check(f"{name}: all kept and stock vLLM, {case}", same and far < 1e-4, apart=far)


def masks(name: str, llm: Any, known: dict[str, Any], model: reference.Reference, given: dict[str, Any]) -> None:
    """The cells that vLLM's processor keeps are those that a wrapped model keeps."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    processor = MULTIMODAL_REGISTRY.create_processor(llm.model_config)
    for case, (text, clips, pictures) in known.items():
        for plan in PLANS if clips else ():
            items = processor.info.parse_mm_data(prompt(text, clips, pictures)["multi_modal_data"])
            made = processor(text, items, hf_processor_mm_kwargs={"vtoken": plan})["mm_kwargs"]["video"]
            found = [(item["video_keep"].data, item["video_home"].data) for item in made]
            wanted = model.masks(given[case], plan)
            same = all(torch.equal(a, b) for f, w in zip(found, wanted, strict=True) for a, b in zip(f, w, strict=True))
            kept = [round(float(keep.float().mean()), 4) for keep, _ in found]
            rows = [len(item["pixel_values_videos"].data) for item in made]
            stock = [n * len(keep) // int(keep.sum()) for n, (keep, _) in zip(rows, found, strict=True)]
            counts = {"rows": sum(rows), "stock_rows": sum(stock), "tokens": [len(home) for _, home in found]}
            check(f"{name}: masks of {plan}, {case}", same and min(kept) < 1, kept=kept, **counts)


def gated(
    name: str,
    llm: Any,
    known: dict[str, Any],
    model: reference.Reference,
    given: dict[str, Any],
    stock: dict[str, Any],
) -> None:
    """Gated answers are those of transformers with vtoken; all plans are in flight at once, and each one alone."""
    asked = [(case, plan) for case in known if case != "text" for plan in PLANS]
    outs = answer(llm, [prompt(*known[case], plan) for case, plan in asked])
    for (case, plan), out in zip(asked, outs, strict=True):
        far = apart(table(out), model.answer(given[case], str(gate_of(plan)), TOKENS))
        counts = {"prompt": len(out.prompt_token_ids), "stock": len(stock[case].prompt_token_ids)}
        fewer = counts["prompt"] < counts["stock"]
        check(f"{name}: {plan}, {case}", fewer and far < 1e-3, apart=far, **counts)
    alone = answer(llm, [prompt(*known["video"], PLANS[1])])[0]
    far = apart(table(alone), table(outs[asked.index(("video", PLANS[1]))]))
    check(f"{name}: alone and among other plans", far < 1e-4, apart=far)


def caches(name: str, llm: Any, known: dict[str, Any]) -> None:
    """A second question about the same video finds the first one's rows, and another plan does not."""
    asked, clips, pictures = known["video"]
    texts = [asked.replace("what is this", text) for text in ("how many", "which colour")]
    first, second = (answer(llm, [prompt(t, clips, pictures, "grt:threshold=3")])[0] for t in texts)
    other = answer(llm, [prompt(texts[1], clips, pictures, "grt:threshold=4")])[0]
    right = not first.num_cached_tokens and second.num_cached_tokens and not other.num_cached_tokens
    found = {"prompt": len(second.prompt_token_ids), "cached": second.num_cached_tokens}
    check(f"{name}: prefix cache", bool(right), **found)


def times(name: str, llm: Any, known: dict[str, Any]) -> None:
    """The times of frames reach the gate, whose refresh is timed, and are part of a video's hash."""
    near, far = (prompt(*known["video"], "grt:refresh_seconds=8") for _ in range(2))
    far["multi_modal_data"]["video"][0][1]["fps"] = 0.125  # a refresh in every frame
    counts = [len(answer(llm, [given])[0].prompt_token_ids) for given in (near, far, near)]
    check(f"{name}: times of the frames", counts[0] == counts[2] < counts[1], prompts=counts)


def file(name: str, llm: Any, folder: Path) -> None:
    """A video that vLLM reads itself, of which it takes 32 frames."""
    from vllm import SamplingParams

    messages = [{"role": "user", "content": server.question(server.clip(folder / "street.mp4"))}]
    counts = []
    for plan in ("grt", "none"):
        out = llm.chat(messages, SamplingParams(max_tokens=1), use_tqdm=False, mm_processor_kwargs={"vtoken": plan})
        counts.append(len(out[0].prompt_token_ids))
    check(f"{name}: a real mp4", counts[0] < counts[1] and counts[1] > 32 * 25, prompts=counts)


def ranks(name: str, place: Path, known: dict[str, Any], model: reference.Reference, given: dict[str, Any]) -> None:
    """Tensor parallel, which splits tower and language model."""
    llm = engine(place, "grt", name, tensor_parallel_size=2)
    for case in ("video", "image and video"):
        (out,) = answer(llm, [prompt(*known[case])])
        far = apart(table(out), model.answer(given[case], str(gate_of("grt")), TOKENS))
        check(f"{name}: on two ranks, {case}", far < 1e-3, apart=far)
    del llm
    gc.collect()


def inside(name: str, llm: Any, known: dict[str, Any]) -> None:
    """M-RoPE models: no CUDA graph for videos; positions beyond the model's tables are refused."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    ((graphs, positions),) = llm.apply_model(built)
    check(f"{name}: CUDA graphs of the encoder", graphs == ["image"], graphs=graphs)
    processor = MULTIMODAL_REGISTRY.create_processor(llm.model_config)
    room = positions - llm.model_config.max_model_len
    check(f"{name}: positions of the rotary tables", processor._room() == room, positions=positions, room=room)
    text, clips, pictures = known["video"]
    items = processor.info.parse_mm_data(prompt(text, clips, pictures)["multi_modal_data"])
    processor._room = lambda: -2000
    try:
        processor(text, items, hf_processor_mm_kwargs={"vtoken": "grt"})
        said = ""
    except ValueError as error:
        said = str(error)
    check(f"{name}: positions beyond them are refused", "positions" in said, said=said[:160])


def refused(name: str, llm: Any, place: Path, known: dict[str, Any]) -> None:
    """Plans that cannot run: in a request, and at the start; the engine goes on."""
    for plan in ("grt | divprune:keep=0.5", "divprune:keep=0.5", "grt:recall=2", "nonsense"):
        try:
            answer(llm, [prompt(*known["video"], plan)])
            said = ""
        except ValueError as error:
            said = str(error)
        check(f"{name}: a request with {plan} is refused", bool(said), said=said[:160])
    still = answer(llm, [prompt(*known["video"], "grt")])[0]
    check(f"{name}: the engine goes on", len(still.outputs[0].token_ids) == TOKENS)
    starts = [{"plan": "grt | divprune:keep=0.5"}, {"plan": "grt", "video_pruning_rate": 0.5}]
    if name == "llava_onevision":  # of which vLLM itself splits the tower's weights whatever is asked
        starts.append({"plan": "grt", "hf_overrides": {"vision_feature_select_strategy": "default"}})
    else:
        starts.append({"plan": "grt", "mm_encoder_tp_mode": "data"})
    for options in starts:
        asked = str(options)
        try:
            engine(place, name=name, **options)
            said = ""
        except (ValueError, RuntimeError) as error:
            said = str(error)
        check(f"{name}: a start with {asked} is refused", "Engine core" not in said and bool(said), said=said[:200])


def main(folder: Path, names: list[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name == "server":
            server.run(folder, ARCHITECTURE["qwen2_5_vl"], check)
        else:
            family(name, folder)
    print(f"{len(failed)} checks failed" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:] or [*ARCHITECTURE, "server"]))
