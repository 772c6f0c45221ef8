"""Merging rows into fewer: groups, the row that represents each, and all tensors that are aligned with the rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vtoken.errors import InputError
from vtoken.kernels.dispatch import by_triton

HALF = (torch.float16, torch.bfloat16)
CACHED = 1 << 18  # elements in float32 that stay in a CPU's cache: 1 MiB


def merge_tokens(
    values: Sequence[Tensor],
    rows: Tensor,
    offsets: Tensor,
    share: Tensor,
    head: Tensor,
    gather: Sequence[bool] | None = None,
) -> list[Tensor]:
    """Weighted sums of groups of rows, of any number of row-aligned tensors at once; one launch per 8 on a GPU.

    Sums run in float32 (float64 for float64), in the order of ``rows``, and have gradients for values and shares. A
    row that is alone in its group with share 1 keeps its bits. Integers and booleans come from the head.

    Args:
        values: tensors [N, ...].
        rows: int64 [M], the members of the first group, then of the second, and so on.
        offsets: int64 [K + 1], where each group's members begin in ``rows``.
        share: floating [M], weight of each member.
        head: int64 [K], the row that represents each group.
        gather: of each value, whether it comes from the head though it is floating.

    Returns:
        The values [K, ...], in their dtypes.

    Raises:
        InputError: values of different length, or groups that do not fit each other.
    """
    gather = [False] * len(values) if gather is None else gather
    if rows.shape != share.shape or len(offsets) != len(head) + 1 or len(gather) != len(values):
        raise InputError(
            f"merge_tokens: {len(values)} values with {len(gather)} gather flags, {len(rows)} rows with {len(share)} "
            f"shares, {len(head)} heads with {len(offsets)} offsets (one more than heads)"
        )
    if len({len(v) for v in values}) > 1:
        raise InputError(f"merge_tokens: values must have one length, got {[len(v) for v in values]}")
    if not values:
        return []
    mean = [v.is_floating_point() and not g for v, g in zip(values, gather, strict=True)]
    found = by_triton(values[0], "merge.merge_tokens", list(values), rows, offsets, share, head, mean)
    if found is not None:
        return found
    groups = _Groups(rows, offsets, share, head)
    return [groups.sum(v) if m else v.index_select(0, head) for v, m in zip(values, mean, strict=True)]


class _Groups:
    """The plain torch path: a bag of rows for each group, which makes no weighted copy of the rows."""

    def __init__(self, rows: Tensor, offsets: Tensor, share: Tensor, head: Tensor) -> None:
        self.rows, self.offsets, self.share, self.head = rows, offsets, share, head
        self._changed: tuple[Tensor, Tensor, Tensor, list[int]] | None = None

    def sum(self, value: Tensor) -> Tensor:
        flat = value.flatten(1) if value.dim() > 1 else value[:, None]
        if len(self.head) == 0 or flat.shape[1] == 0:
            return value.index_select(0, self.head)
        if value.dtype in HALF:
            out = self._half(flat)
        else:
            out = _bags(flat, self.rows, self.offsets, self.share.to(flat.dtype))
        return out.view(len(self.head), *value.shape[1:])

    def _half(self, flat: Tensor) -> Tensor:
        """Rows that stay as they are are copied, the others summed in blocks of float32: bags would round shares."""
        number, rows, share, ends = self._changed = self._changed or self._find_changed()
        out = flat.index_select(0, self.head)
        if len(number) == 0:
            return out
        most = len(number) if flat.is_cuda else max(1, CACHED * len(number) // (flat.shape[1] * max(1, len(rows))))
        for k in range(0, len(number), most):
            part = ends[k : k + most + 1]
            first, last = part[0], part[-1]
            wide = flat.index_select(0, rows[first:last]).float()
            offsets = torch.tensor([e - first for e in part], device=flat.device)
            sums = _bags(wide, torch.arange(last - first, device=flat.device), offsets, share[first:last])
            out.index_copy_(0, number[k : k + most], sums.to(flat.dtype))
        return out

    def _find_changed(self) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Groups that are not one row with share 1, their members and shares, and where each one's members begin."""
        count = self.offsets.diff()
        owner = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        scaled = (self.share != 1) | self.share.requires_grad
        other = (count != 1).index_put((owner[scaled],), count.new_ones((), dtype=torch.bool))
        members = other[owner].nonzero().squeeze(1)
        ends = [0, *count[other].cumsum(0).tolist()]
        return other.nonzero().squeeze(1), self.rows[members], self.share[members].float(), ends


def _bags(value: Tensor, rows: Tensor, offsets: Tensor, share: Tensor) -> Tensor:
    return embedding_bag(rows, value, offsets, mode="sum", per_sample_weights=share, include_last_offset=True)


class Merge:
    """A merge of rows into fewer: the groups, the row that represents each, and the weights.

    Args:
        group: int64 [N], number of the new row of every row, 0..M-1 without gaps, or -1 where it is dropped.
        size: float [N], above 0, how many source rows each row represents.
        ordered: keep the numbers; otherwise new rows are in the order of their heaviest members (the first of equals).
        weight: float [N], weights of the sums, by which the heaviest member is found; by default each row's share of
            its new row's size.

    Attributes:
        group: int64 [N], the final numbers.
        head: int64 [M], the heaviest member of each new row.
        size: float [M].
        rows, offsets: the members of each new row, as in ``merge_tokens``.
        share: float [N - left], each member's share of its new row's size.
        weight: float [N - left], each member's weight.
    """

    def __init__(self, group: Tensor, size: Tensor, ordered: bool = False, weight: Tensor | None = None) -> None:
        n = len(group)
        count = int(group.max()) + 1 if n else 0
        members = (group >= 0).nonzero().squeeze(1)
        target, mass = group[members], size[members]
        total = size.new_zeros(count).index_add_(0, target, mass)
        heavy = mass if weight is None else weight[members]
        best = heavy.new_full((count,), -torch.inf).scatter_reduce(0, target, heavy, "amax")
        first = torch.where(heavy == best[target], members, n)
        head = first.new_full((count,), n).scatter_reduce(0, target, first, "amin")
        if not ordered:
            order = head.argsort()
            number = torch.empty_like(order)
            number[order] = torch.arange(count, device=order.device)
            head, total, target = head[order], total[order], number[target]
            group = torch.where(group >= 0, number[group.clamp(min=0)], -1) if count else group
        self.group, self.head, self.size = group, head, total
        order = target.argsort(stable=True)
        self.rows, target = members[order], target[order]
        sizes = torch.bincount(target, minlength=count)
        self.offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        self.share = size[self.rows] / total[target]
        self.weight = self.share if weight is None else weight[self.rows]

    def __call__(self, value: Tensor, unit: int = 1) -> Tensor:
        """Size-weighted means of rows [N * unit, ...]; integers and booleans come from the heaviest member.

        A row that stays alone keeps its bits. ``unit`` consecutive rows belong to one number and are merged row by row.
        """
        return self.all([value.unflatten(0, (-1, unit))])[0].flatten(0, 1)

    def all(self, values: Sequence[Tensor], gather: Sequence[int] = (), by_weight: bool = False) -> list[Tensor]:
        """Several tensors [N, ...] at once.

        Args:
            gather: numbers of the floating ones that come from the heaviest member too.
            by_weight: sums by ``weight`` instead of means by size.
        """
        share, flags = self.weight if by_weight else self.share, [i in gather for i in range(len(values))]
        return merge_tokens(values, self.rows, self.offsets, share, self.head, flags)
