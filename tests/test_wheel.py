"""The wheel: small, nothing but vtoken in it, and enough in it for the main job and the page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

NEEDED = {
    "vtoken/py.typed",
    "vtoken/demos/assets/player.html",
    "vtoken/reference/weights/model.safetensors",
    "vtoken/reference/weights/tokenizer.json",
    "vtoken/reference/weights/chat_template.jinja",
    "vtoken/reference/vjepa/model.safetensors",
    "vtoken/reference/scorer/model.safetensors",
    "vtoken/reference/vjepa/video_preprocessor_config.json",
}
PLAN = "grt | jepa_surprise:encoder=tiny | surprise:keep=0.5"  # with both models of the package
ANSWER = """
import vtoken
from vtoken.reference import data
assert vtoken.__file__.startswith({folder!r}), vtoken.__file__
model, words = vtoken.load("reference", device="cpu")
clip = data.clip(0)
print(vtoken.ask(model, words, clip.pixels[:16], data.questions(clip)[0].text, native_fps=16, plan={plan!r}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that neither old build outputs come in nor new ones are left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "out", "report", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted, symlinks=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "-w", str(folder), str(folder / "source")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return next(folder.glob("vtoken-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel, unpacked."""
    target = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def _python(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=installed.parent, check=False)


def test_size_and_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert wheel.stat().st_size <= 10e6
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"vtoken"}
    assert set(names) >= NEEDED
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "vtoken").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == expected


def test_it_answers_with_the_weights_that_it_has(installed: Path) -> None:
    ended = _python(installed, "-c", ANSWER.format(folder=str(installed), plan=PLAN))
    assert ended.returncode == 0 and ended.stdout.strip(), ended.stderr


def test_the_thinker_is_in_the_repository_alone(installed: Path, tmp_path: Path) -> None:
    words = ["-m", "vtoken", "jepa", "train", "--out", str(tmp_path / "run"), "--episodes", "1", "1", "1"]
    ended = _python(installed, *words, "--device", "cpu")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "weights are in the repository and not in the installed package" in ended.stderr
    assert "--thinker" in ended.stderr and not (tmp_path / "run" / "features" / "recipe.json").exists()
