"""lmms-eval from end to end, offline: `make test-lmms` runs it in an environment of its own.

    python tests/lmms/run.py FOLDER [CLIPS]

Writes clips of DenseQA and a task about them, runs `lmms_eval --model vtoken` with the reference model, and compares
its score and metrics with `vtoken.ask` on the same questions. The exit code says whether they are the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import vtoken
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
    command = [sys.executable, "-m", "lmms_eval", "--model", "vtoken", "--model_args", ARGUMENTS, "--batch_size", "1"]
    command += ["--tasks", "vtoken_dense", "--include_path", str(task), "--output_path", str(folder / "results")]
    subprocess.run(command, check=True, timeout=1500)
    found = json.loads(max((folder / "results").rglob("*results.json")).read_text())
    told = found["results"]["vtoken_dense"]
    print(json.dumps({"results": told, "throughput": metrics(found)}, indent=1))
    model, words = vtoken.load("reference", device="cpu")
    options: dict[str, Any] = {"plan": "grt | divprune", "keep": 0.5, "fps": 4, "max_new_tokens": 24}
    answers = [vtoken.ask(model, words, row["video"], row["question"], **options) for row in rows]
    score = sum(a.text == row["answer"] for a, row in zip(answers, rows, strict=True)) / len(rows)
    kept = sum(a.report.tokens for a in answers) / sum(a.report.cells for a in answers)
    same = abs(told["exact,none"] - score) < 1e-9 and abs(metrics(found)["avg_visual_tokens_kept"] - kept) < 1e-9
    print(f"vtoken.ask: {score:.4f} right, {kept:.4f} of the visual tokens; {'the same' if same else 'NOT THE SAME'}")
    return 0 if same else 1


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
