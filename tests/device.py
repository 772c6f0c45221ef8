"""A device made of the CPU: tensors that live "elsewhere", so that every value read back from it can be counted.

Its tensors say that they are on ``meta``, hold their values in a CPU tensor, and run every operation on it. Reading a
value on the host (``item``, ``tolist``, a copy to the CPU) and operations whose output has a size that depends on
values (``nonzero``, a boolean index, ``unique``) make a GPU's queue run empty; each is written down with the line that
asked.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from vtoken.data.tokens import Tokens

HERE = torch.device("meta")
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "equal",
    "bincount",
    "is_nonzero",
}


class Elsewhere(Tensor):
    """A tensor of the made device; ``value`` is the CPU tensor behind it."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, value.shape, value.stride(), value.storage_offset(), dtype=value.dtype, device=HERE
        )
        made.value = value
        return made

    def tolist(self) -> Any:
        """As on a GPU, by way of the CPU; torch has no ``tolist`` for subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor of the device, outside of Device()")


class Device(TorchDispatchMode):
    """The device: tensors are made on it by ``put`` and by factories that name its tensors' device.

    Attributes:
        reads: where the host waited, "file:line operation" and how often.
        double: whether the device has float64; a result of that type is refused otherwise.
    """

    def __init__(self, double: bool = True) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.double = double
        self._numbers = _FromNumbers(self)

    def __enter__(self) -> Device:
        self._numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._numbers.__exit__(*error)

    def put(self, value: Any) -> Any:
        """Tensors, containers of tensors or ``Tokens`` on the device; not counted."""
        if isinstance(value, Tokens):
            fields = {k: self.put(v) for k, v in vars(value).items() if not k.startswith("_")}
            with Device():
                return replace(value, **fields)
        return tree_map(lambda t: Elsewhere(t) if isinstance(t, Tensor) else t, value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked) == HERE:
            kwargs["device"] = torch.device("cpu")
        held = [a for a in _flat((args, kwargs)) if isinstance(a, Elsewhere)]
        moved = name in ("_to_copy", "to") and asked is not None
        there = torch.device(asked) == HERE if asked is not None else bool(held)
        if name == "copy_" and not isinstance(args[0], Elsewhere):
            there = False
        if held and (name in WAITS or (moved and not there) or (name == "copy_" and not there) or _by_mask(name, args)):
            self.reads[f"{_caller()} {name}"] += 1
        out = func(*tree_map(_value, args), **tree_map(_value, kwargs))
        if not there:
            return out
        return tree_map(lambda t: self._back(t, held), out)

    def _back(self, made: Any, held: list[Elsewhere]) -> Any:
        if not isinstance(made, Tensor):
            return made
        if not self.double and made.dtype == torch.float64:
            raise TypeError(f"the device has no float64: {_caller()}")
        same = next((h for h in held if h.value is made), None)
        if same is not None and same.shape == made.shape:
            return same
        return Elsewhere(made)

    device = HERE

    @staticmethod
    def look(tensor: Tensor) -> Tensor:
        """The values of a tensor of the device, which a test looks at without being counted."""
        assert isinstance(tensor, Elsewhere)
        return tensor.value

    @property
    def count(self) -> int:
        """How often the host waited."""
        return sum(self.reads.values())


class _FromNumbers(TorchFunctionMode):
    """``torch.tensor`` and its kind, which make their result before any dispatch mode is asked."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device} | kwargs
            func, args = torch.tensor, args[1:]
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            made = func(*args, **kwargs)
            return self.device.put(made) if device == HERE else made.to(device)
        return func(*args, **kwargs)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Elsewhere) else x


def _flat(x: Any) -> list[Any]:
    found: list[Any] = []
    tree_map(found.append, x)
    return found


def _by_mask(name: str, args: Any) -> bool:
    if name not in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"):
        return False
    return any(isinstance(i, Elsewhere) and i.dtype in (torch.bool, torch.uint8) for i in args[1] if i is not None)


def _caller() -> str:
    frame = sys._getframe(2)
    lines = []
    while frame is not None:
        file = frame.f_code.co_filename
        if "/vtoken/" in file and "/site-packages/" not in file:
            lines.append(f"{file.split('/vtoken/')[-1]}:{frame.f_lineno}")
            if len(lines) == 3:
                break
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(lines)
