"""lmms-eval from end to end, offline: `make test-lmms` runs it in an environment of its own.

    python -m tests.lmms.run FOLDER [CLIPS]

Writes clips of DenseQA and a task about them, runs `lmms_eval --model vtoken` with the reference model, and compares
its score and metrics with `vtoken.ask` on the same questions. Then `--model vtoken_hf` with a tiny random Qwen2.5-VL:
without a plan its answers are those of lmms-eval's own model, with one its tokens are those of the budget. The exit
code says whether all of it is right.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import vtoken
from tests.families.checkpoints import save
from vtoken.reference.data import read_dataset, write_dataset

ARGUMENTS = "pretrained=reference,plan=grt | divprune,keep=0.5,fps=4,device=cpu"
TASK = Path(__file__).parent / "task"


def main(folder: Path, clips: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    samples = read_dataset(write_dataset(folder / "clips", "test", clips))
    rows = [
        {"video": str(s.video.resolve()), "question": q.text, "answer": q.answer}
        for s in samples
        for q in s.questions[:4]
    ]
    data, task = folder / "dense.jsonl", folder / "task"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task.mkdir(exist_ok=True)
    (task / "dense.yaml").write_text((TASK / "dense.yaml").read_text().replace("DATA", str(data)))
    (task / "dense.py").write_text((TASK / "dense.py").read_text())
    right = [ours(folder, rows), theirs(folder)]
    return 0 if all(right) else 1


def evaluate(folder: Path, model: str, arguments: str) -> tuple[dict[str, Any], list[str]]:
    """The result file of a run of lmms-eval, and its answers."""
    out = folder / "results" / re.sub(r"\W+", "_", f"{model}_{arguments}")[-80:]
    command = [sys.executable, "-m", "lmms_eval", "--model", model, "--model_args", arguments, "--batch_size", "1"]
    command += ["--tasks", "vtoken_dense", "--include_path", str(folder / "task"), "--output_path", str(out)]
    subprocess.run([*command, "--log_samples"], check=True, timeout=1500)
    lines = max(out.rglob("*samples_vtoken_dense.jsonl")).read_text().splitlines()
    found = sorted((json.loads(line) for line in lines), key=lambda row: row["doc_id"])
    return json.loads(max(out.rglob("*results.json")).read_text()), [str(row["filtered_resps"]) for row in found]


def ours(folder: Path, rows: list[dict[str, str]]) -> bool:
    """The model ``vtoken`` and ``vtoken.ask``."""
    found, _ = evaluate(folder, "vtoken", ARGUMENTS)
    told = found["results"]["vtoken_dense"]
    print(json.dumps({"results": told, "throughput": metrics(found)}, indent=1))
    model, words = vtoken.load("reference", device="cpu")
    options: dict[str, Any] = {"plan": "grt | divprune", "keep": 0.5, "fps": 4, "max_new_tokens": 24}
    answers = [vtoken.ask(model, words, row["video"], row["question"], **options) for row in rows]
    score = sum(a.text == row["answer"] for a, row in zip(answers, rows, strict=True)) / len(rows)
    kept = sum(a.report.tokens for a in answers) / sum(a.report.cells for a in answers)
    same = abs(told["exact,none"] - score) < 1e-9 and abs(metrics(found)["avg_visual_tokens_kept"] - kept) < 1e-9
    print(f"vtoken.ask: {score:.4f} right, {kept:.4f} of the visual tokens; {'the same' if same else 'NOT THE SAME'}")
    return same


def theirs(folder: Path) -> bool:
    """The model ``vtoken_hf`` and lmms-eval's own, with the same frames and processor."""
    place = save("qwen2_5_vl", folder / "qwen2_5_vl")
    own = f"pretrained={place},device=cpu,device_map=cpu,min_pixels=3136,max_pixels=50176,max_num_frames=8"
    _, stock = evaluate(folder, "qwen2_5_vl", own)
    tokens = {}
    for plan in ("plan=none", "plan=divprune,keep=0.5", "plan=mad:threshold=60"):
        found, answers = evaluate(folder, "vtoken_hf", f"base=qwen2_5_vl,{own},{plan}")
        tokens[plan] = {name: metrics(found)[f"avg_visual_tokens{name}"] for name in ("", "_full", "_kept")}
        print(json.dumps({plan: tokens[plan], "answers as without vtoken": answers == stock}))
        if plan == "plan=none" and answers != stock:
            return False
    share = [found["_kept"] for found in tokens.values()]
    full = {found["_full"] for found in tokens.values()}
    return share[0] == 1 and abs(share[1] - 0.5) < 0.01 and 0 < share[2] < 1 and len(full) == 1


def metrics(found: Any) -> dict[str, Any]:
    """The mapping with our metrics, wherever this version of lmms-eval keeps it."""
    if isinstance(found, dict):
        if "avg_visual_tokens_kept" in found:
            return found
        found = list(found.values())
    if isinstance(found, list):
        for one in found:
            if inside := metrics(one):
                return inside
    return {}


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3))
