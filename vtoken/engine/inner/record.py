"""A prompt whose tokens leave inside the language model: its visual tokens, and which rows each layer has."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.inner import COLUMN

LINE = "_line"  # signal int64: the line of structural rows to which a token belongs


@dataclass
class Visual:
    """The visual tokens of a prompt, as the language model is given it.

    Attributes:
        tokens: packed batch, one entry an item (an image or a video); its features are not read and may be [N, 0].
        column: int64 [N], the column of each token in the padded prompt, ascending within an item.
        owner: int64 [U], the sample of each item; one sample's items lie together.
        samples, width: rows and columns of the padded prompt.
        structural: int64 [M, 3], (sample, column, line) of rows that are no tokens, such as newlines; one stays as long
            as a token with the same signal ``_line`` does. Line -1 stays in any case.
        last: int64 [samples], column of the row from which the answer starts; by default the last of the prompt.

    Raises:
        InputError: tensors that do not fit each other.
    """

    tokens: Tokens
    column: Tensor
    owner: Tensor
    samples: int
    width: int
    structural: Tensor | None = None
    last: Tensor | None = None

    def __post_init__(self) -> None:
        n, units = len(self.tokens), self.tokens.samples
        if self.column.shape != (n,) or self.owner.shape != (units,):
            raise InputError(
                f"Visual: {n} tokens in {units} items need as many columns and owners, got {list(self.column.shape)} "
                f"and {list(self.owner.shape)}"
            )
        if n and not 0 <= int(self.column.min()) <= int(self.column.max()) < self.width:
            raise InputError(f"Visual: columns must lie in 0..{self.width - 1}")
        self.tokens = self.tokens.with_signals(**{COLUMN: self.column})

    @classmethod
    def of(cls, columns: Tensor, position: Tensor | None = None) -> Visual:
        """One item a sample from the mask of its visual columns (bool [B, N]), raster order; positions (0, 0, i)."""
        sample, column = columns.nonzero().unbind(1)
        count = columns.sum(1)
        batch = torch.cat([count.new_zeros(1), count.cumsum(0)])
        if position is None:
            position = torch.zeros(len(column), 3, dtype=torch.int32, device=columns.device)
            position[:, 2] = torch.arange(len(column), device=columns.device) - batch[sample]
        tokens = Tokens(
            torch.empty(len(column), 0, device=columns.device),
            position.to(torch.int32),
            torch.full((len(column),), torch.nan, device=columns.device),
            torch.ones(len(column), device=columns.device),
            torch.arange(len(column), device=columns.device),
            batch,
        )
        samples, width = columns.shape
        return cls(tokens, column, torch.arange(samples, device=columns.device), samples, width)

    def ends(self) -> Tensor:
        """int64 [samples], the column behind the last visual or structural row; 0 where there is none."""
        owner = self.owner[self.tokens.sample_of]
        end = torch.zeros(self.samples, dtype=torch.long, device=self.column.device)
        end = end.scatter_reduce(0, owner, self.column + 1, "amax")
        if self.structural is not None and len(self.structural):
            end = end.scatter_reduce(0, self.structural[:, 0], self.structural[:, 1] + 1, "amax")
        return end


@dataclass
class Record:
    """Which columns of a prompt the rows of each layer, and of its cache, are.

    Attributes:
        width: columns of the prompt.
        at: for every layer int64 [B, n], or [B, G, n] where every kv head has its own; -1 is padding, on the left.
            None where the rows are those of the stock model.
        visual: visual tokens that enter each layer, of all samples.
        rows: mean rows of a sample that enter each layer, without padding.
        held: mean rows of a sample in the cache of each layer.
        stock_rows: mean rows of a sample in the stock model.
        shift: for every layer int64 [B], what is taken off the position of a generated token; None for nothing.
        columns: mean columns of a sample that attention finds in each layer, where some are held; else empty.
    """

    width: int
    at: list[Tensor | None]
    visual: list[int] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    stock_rows: float = 0.0
    shift: list[Tensor | None] = field(default_factory=list)
    columns: list[float] = field(default_factory=list)

    def start(self, depth: int, visual: int, at: Tensor) -> None:
        """Begin with the rows of the stock model (int64 [B, width], -1 for padding) in every layer."""
        self.at, self.shift = [None] * depth, [None] * depth
        self.visual, self.rows = [visual] * depth, [_mean_rows(at)] * depth
        self.held, self.stock_rows = list(self.rows), self.rows[0]

    def leave(self, layer: int, visual: int, at: Tensor, shift: Tensor | None) -> None:
        """From a layer on, only these columns are left."""
        for i in range(layer, len(self.at)):
            self.at[i], self.shift[i], self.visual[i] = at, shift, visual
            self.rows[i] = self.held[i] = _mean_rows(at)

    def hold(self, layer: int, columns: float) -> None:
        """From a layer on, attention finds this many columns, and the cache has their keys and values."""
        self.columns = [*(self.columns or [columns] * len(self.at))[:layer], *[columns] * (len(self.at) - layer)]
        self.held[layer:] = self.columns[layer:]

    def let_go(self, layer: int, at: Tensor) -> None:
        """The cache of a layer keeps these columns only."""
        self.at[layer], self.held[layer] = at, _mean_rows(at)

    def removed(self, layer: int) -> int:
        """Columns by which the cache of a layer is shorter than the prompt."""
        at = self.at[layer]
        return 0 if at is None else self.width - at.shape[-1]

    @property
    def cut(self) -> bool:
        """Whether any layer has other rows than the stock model."""
        return any(a is not None for a in self.at)

    @property
    def mean_visual(self) -> float:
        """Visual tokens, averaged over the layers: the number to compare with methods that act before the model."""
        return sum(self.visual) / max(1, len(self.visual))


def _mean_rows(at: Tensor) -> float:
    """Mean rows of a sample, and of a kv head where each has its own."""
    return float((at >= 0).sum()) / (at.numel() // max(1, at.shape[-1])) if at.numel() else 0.0
