"""The OpenAI server of vLLM with the plug-in, asked about a real video."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai

from tests.families.checkpoints import save
from vtoken.video import open_video
from vtoken.video.write import write_video

STREET = Path(__file__).resolve().parents[1] / "data" / "clips" / "street.avi"
WAIT = 1500.0  # seconds
OPTIONS = "--dtype float32 --enforce-eager --max-model-len 8192 --max-num-batched-tokens 8192 --trust-request-mm-kwargs"


def clip(path: Path) -> Path:
    """A street camera as mp4: 42 frames of 768x576 at 10 a second."""
    frames = np.concatenate([chunk.pixels for chunk in open_video(STREET)])
    return write_video(path, Shown(frames))


class Shown:
    """Frames as ``write_video`` takes them."""

    def __init__(self, frames: np.ndarray) -> None:
        self.pixels, self.size, self.fps = frames, frames.shape[1:3], 10.0

    def __len__(self) -> int:
        return len(self.pixels)

    def frames(self) -> np.ndarray:
        return self.pixels


def run(folder: Path, architecture: str, check: Callable[..., None]) -> None:
    """Ask for the plans of the server and of a request; then one that is refused."""
    place, video = save("qwen2_5_vl", folder / "qwen2_5_vl"), clip(folder / "street.mp4")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"architectures": [architecture], "vtoken": "grt"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(place), "--port", str(port)]
    command += [*OPTIONS.split(), "--hf-overrides", json.dumps(given), "--served-model-name", "tiny"]
    command += ["--media-io-kwargs", json.dumps({"video": {"fps": 10, "num_frames": -1}})]
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            client = ready(openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none"), process, log)
            questions(client, video, check)
        finally:
            process.terminate()
            process.wait(120)


def ready(client: Any, process: Any, log: Path) -> Any:
    """The client, once the server answers."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        try:
            client.models.list()
            return client
        except openai.APIConnectionError:
            if process.poll() is not None:
                break
            time.sleep(2)
    raise RuntimeError(f"the server did not start: {log.read_text()[-3000:]}")


def question(video: Path) -> list[dict[str, Any]]:
    """The content of a message about an mp4."""
    data = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
    return [{"type": "video_url", "video_url": {"url": data}}, {"type": "text", "text": "who walks there?"}]


def questions(client: Any, video: Path, check: Callable[..., None]) -> None:
    """What the prompts cost with and without the gate, by the server's own count."""
    content = question(video)

    def ask(plan: str | None) -> int:
        body = {"mm_processor_kwargs": {"vtoken": plan}} if plan else {}
        made = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": content}], max_tokens=4, extra_body=body
        )
        return made.usage.prompt_tokens

    own, whole, other = ask(None), ask("none"), ask("grt:threshold=12")
    check("server: a real mp4", other < own < whole, prompt_grt=own, prompt_threshold_12=other, prompt_none=whole)
    try:
        ask("grt | divprune:keep=0.5")
        code = 200
    except openai.APIStatusError as error:
        code, said = error.status_code, str(error)[:200]
    check("server: another stage is refused", code == 400 and "divprune" in said, status=code)
    check("server: and it goes on", ask(None) == own)
