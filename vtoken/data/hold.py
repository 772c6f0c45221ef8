"""HoldMap: which computed column of a prompt every column shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtoken.errors import InputError

HIDDEN = -1


@dataclass(frozen=True)
class HoldMap:
    """For every column of a stock prompt the column whose key and value attention sees there.

    A column that shows itself is a row: it goes through the language model. A column that shows another one is held:
    nothing is computed for it, and attention sees the row's key and value there, turned to the column's position. A
    column that shows -1 is hidden, as all padding is; a dropped token is a hidden column.

    Attributes:
        shows: int64 [B, C], a column of the same sample, or -1.

    Raises:
        InputError: a wrong shape or type, a column outside the prompt, or one that shows a column that is no row.
    """

    shows: Tensor

    def __post_init__(self) -> None:
        shows = self.shows
        if shows.dim() != 2 or shows.dtype != torch.int64:
            raise InputError(f"HoldMap.shows must be int64 [batch, columns], got {shows.dtype} {list(shows.shape)}")
        if shows.numel() and (int(shows.min()) < HIDDEN or int(shows.max()) >= shows.shape[1]):
            raise InputError(f"HoldMap.shows must be -1 or a column below {shows.shape[1]}")
        target = shows.clamp(min=0)
        wrong = (shows != HIDDEN) & (shows.gather(1, target) != target)
        if bool(wrong.any()):
            b, c = wrong.nonzero()[0].tolist()
            raise InputError(
                f"HoldMap.shows: column {c} of sample {b} shows column {int(shows[b, c])}, which does not show itself; "
                "a column can only show one that is computed"
            )

    @classmethod
    def of(cls, show: Sequence[Tensor], visual: Tensor, mask: Tensor | None = None) -> HoldMap:
        """The map of prompts whose text is computed and whose visual tokens follow ``show``.

        Args:
            show: per sample int64 [n], for each of its n visual placeholders, in order, the number (0 to n - 1) of the
                placeholder that it shows, or -1 to hide it.
            visual: bool [B, C], the placeholders.
            mask: [B, C], 0 for padding, or None.

        Raises:
            InputError: another number of placeholders, or a placeholder that shows one that is not computed.
        """
        if len(show) != len(visual):
            raise InputError(f"show has {len(show)} samples, the prompts {len(visual)}")
        shows = torch.arange(visual.shape[1], device=visual.device).repeat(len(visual), 1)
        if mask is not None:
            shows = shows.masked_fill(mask == 0, HIDDEN)
        for b, own in enumerate(show):
            place = visual[b].nonzero().squeeze(1)
            if own.shape != place.shape:
                raise InputError(f"show[{b}] must be int64 [{len(place)}], one a placeholder, got {list(own.shape)}")
            own = own.to(place.device)
            if own.numel() and (int(own.min()) < HIDDEN or int(own.max()) >= len(own)):
                raise InputError(f"show[{b}] must be -1 or a placeholder below {len(own)}")
            shows[b, place] = torch.where(own < 0, HIDDEN, place[own.clamp(min=0)])
        return cls(shows)

    @property
    def rows(self) -> Tensor:
        """bool [B, C], the columns that are computed."""
        return self.shows == torch.arange(self.shows.shape[1], device=self.shows.device)

    def columns(self) -> list[Tensor]:
        """Per sample int64 [r], the computed columns in order; with these a prompt is cut."""
        return [row.nonzero().squeeze(1) for row in self.rows]

    def holds(self) -> bool:
        """Whether any column shows another one; without such a column a cut prompt needs no hold."""
        return bool(((self.shows != HIDDEN) & ~self.rows).any())

    def is_identity(self, mask: Tensor | None = None) -> bool:
        """Whether every column that is no padding (``mask`` [B, C], 0 for padding) is computed."""
        rows = self.rows if mask is None else self.rows | (mask.to(self.rows.device) == 0)
        return bool(rows.all())

    def to(self, device: torch.device) -> HoldMap:
        """The map on another device."""
        return HoldMap(self.shows.to(device))
