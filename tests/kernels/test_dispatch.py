"""Which implementation runs: Triton where it can, plain torch where it cannot, and what the log says."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.catalogue import MERGERS, PRUNERS, Row, label
from tests.tokens import context, sample
from vtoken.data.budget import Budget
from vtoken.errors import InputError, MissingExtraError
from vtoken.kernels import attention, bipartite, cosine, coverage, dispatch, dpc_knn, dpp, kcenter, merge, precision
from vtoken.kernels import varlen as varlen
from vtoken.kernels.held import held_attention
from vtoken.kernels.held_columns import HeldColumns
from vtoken.kernels.warm import warm_up
from vtoken.methods import registry
from vtoken.methods.reducer import Reducer

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.arange(6)
ANGLE = torch.zeros(1, 6)


def held() -> Tensor:
    columns = HeldColumns(ROWS[None], ROWS[None] * 0, ROWS[None] >= 0, ANGLE.cos(), ANGLE.sin(), 12, False)
    return held_attention(X[None, None, :1], X[None, None], X[None, None], columns, 0.4)


CALLS = {
    "attention.received_attention": lambda: attention.received_attention(X[:, None], X[:, None], 0.4),
    "attention.cls_attention": lambda: attention.cls_attention(X[:1, None], X[:, None], 0.4),
    "bipartite.bipartite_match": lambda: bipartite.bipartite_match(X[None], torch.tensor([3])).into,
    "cosine.paired_cosine": lambda: cosine.paired_cosine(X, ROWS, ROWS + 1),
    "coverage.greedy_coverage": lambda: coverage.greedy_coverage(X.abs(), 4),
    "dpc_knn.dpc_scores": lambda: dpc_knn.dpc_scores(X[None], 3),
    "dpc_knn.dpc_labels": lambda: dpc_knn._labels(X[None], X[None, :3]),
    "dpp.greedy_dpp": lambda: dpp.greedy_dpp(X, 4),
    "kcenter.kcenter": lambda: kcenter.kcenter(X, 4),
    "held.held_attention": lambda: held(),
    "merge.merge_tokens": lambda: merge.merge_tokens([X], ROWS, ROWS[:4] * 2, torch.full((6,), 0.5), ROWS[:3] * 2)[0],
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As on a GPU where nothing has failed yet."""
    pytest.importorskip("triton")
    monkeypatch.delenv("VTOKEN_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "on_gpu", lambda x: True)
    monkeypatch.setattr(dispatch, "_failed", set())
    monkeypatch.setattr(dispatch, "_logged", [])
    caplog.set_level(logging.WARNING, "vtoken")


def broken(*args: object) -> Tensor:
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore lines")


@pytest.mark.parametrize("twin", CALLS)
def test_a_twin_that_fails_falls_back(
    twin: str, gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VTOKEN_KERNELS", "torch")
    plain = CALLS[twin]()
    monkeypatch.delenv("VTOKEN_KERNELS")
    tried = []
    monkeypatch.setattr(f"vtoken.kernels.gpu.{twin}", lambda *args: tried.append(1) or broken())
    for _ in range(3):
        assert torch.equal(CALLS[twin](), plain)
    assert tried == [1]  # once, not with every call
    (record,) = caplog.records
    assert record.name == "vtoken" and twin in record.message and "C compiler" in record.message
    assert "\n" not in record.message and "VTOKEN_KERNELS=triton" in record.message
    monkeypatch.setenv("VTOKEN_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="C compiler"):
        CALLS[twin]()


@pytest.mark.parametrize("version", ["3.2.0", "2.1.0+git"])
def test_an_old_triton_is_not_used(
    version: str, gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr("vtoken.kernels.gpu.cosine.paired_cosine", broken)
    dispatch.too_old.cache_clear()
    try:
        for _ in range(2):
            CALLS["cosine.paired_cosine"]()
        (record,) = caplog.records
        assert f"Triton {version} is older than 3.3" in record.message
        monkeypatch.setenv("VTOKEN_KERNELS", "triton")
        with pytest.raises(MissingExtraError, match=r"older than 3\.3.*vtoken\[kernels\]"):
            CALLS["cosine.paired_cosine"]()
    finally:
        dispatch.too_old.cache_clear()


def test_the_least_triton_is_that_of_the_extra() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"triton>={".".join(map(str, dispatch.LEAST))}"' in text


def test_warm_up_names_what_fell_back(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for twin in CALLS:
        monkeypatch.setattr(f"vtoken.kernels.gpu.{twin}", broken)
    assert warm_up("cpu", torch.float32) == sorted(CALLS)
    monkeypatch.setattr(dispatch, "on_gpu", lambda x: False)
    monkeypatch.setattr(dispatch, "_failed", set())
    assert warm_up("cpu") == []
    with pytest.raises(InputError, match="device=cuda:97"):
        warm_up("cuda:97")


def test_several_twins_that_fail_give_one_line(
    gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for twin, call in CALLS.items():
        monkeypatch.setattr(f"vtoken.kernels.gpu.{twin}", broken)
        call()
    assert len(caplog.records) == 1


def test_a_gpu_without_memory_is_no_reason_to_fall_back(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vtoken.kernels.gpu.cosine.paired_cosine", full)
    with pytest.raises(torch.OutOfMemoryError):
        CALLS["cosine.paired_cosine"]()


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTOKEN_KERNELS", "cuda")
    with pytest.raises(InputError, match="VTOKEN_KERNELS='cuda' is unknown"):
        cosine.paired_cosine(X, ROWS, ROWS)


def test_the_capability_is_that_of_the_tensors_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or (7, 5))
    varlen.varlen_kernel.cache_clear()
    for index in (0, 1):
        assert varlen.varlen_kernel(torch.device("cuda", index), torch.float16, 64) is None
    assert asked == [torch.device("cuda:0"), torch.device("cuda:1")]
    varlen.varlen_kernel.cache_clear()


class NoDouble(TorchDispatchMode):
    """A device without float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            assert not isinstance(value, Tensor) or value.dtype != torch.float64, func
        return out


@pytest.mark.parametrize("row", [*PRUNERS, *MERGERS], ids=label)
def test_methods_run_on_a_device_without_float64(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "widest", lambda device: torch.float32)
    monkeypatch.setattr("vtoken.pruners.quota.widest", lambda device: torch.float32)
    method, tokens = registry.build(row["name"], **row["options"]), sample(40, 1, row["signals"])
    assert isinstance(method, Reducer)
    with NoDouble():
        out = method.reduce(tokens, Budget(tokens=15) if method.needs_budget else None, context())
    assert len(out) == (15 if method.needs_budget else 40)
