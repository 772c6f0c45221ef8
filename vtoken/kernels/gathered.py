"""Attention within segments whose keys and values are read from any rows, so that one row serves many segments.

A video encoder that computes a few patches of each frame lets them attend to all patches of the frame: the key and
value of a patch that was not computed are those of the row that was computed for it last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vtoken.kernels.varlen import Segments, varlen_kernel

LIMIT = 1 << 15  # rows of keys that are gathered at a time: 64 MiB with their values, at 256 numbers of 4 bytes


class Lookup:
    """Which rows each segment computes and which rows its keys are read from; computed once for all layers.

    Attributes:
        queries: rows of each segment, one segment after another; no segment is empty.
        index: int64 [M] on the device, the row of every key, one segment after another.
        keys: keys of each segment.
    """

    def __init__(self, queries: Sequence[int], index: Tensor, keys: Sequence[int]) -> None:
        self.queries, self.keys, self.index = Segments(queries, index.device), Segments(keys, index.device), index
        if len(self.queries.lengths) != len(self.keys.lengths) or len(self.keys.lengths) != len(keys):
            raise ValueError(f"{len(queries)} segments of queries and {len(keys)} of keys; none may be empty")

    @cached_property
    def own(self) -> Tensor:
        """int64 [N]: the key, as a place in ``index``, that every row is in its own segment."""
        rows, keys = (torch.tensor(s.lengths) for s in (self.queries, self.keys))
        segment = torch.arange(len(rows))
        of_row = segment.repeat_interleave(rows).to(self.index.device)
        place = (of_row[self.index] == segment.repeat_interleave(keys).to(self.index.device)).nonzero().squeeze(1)
        return place[self.index[place].argsort()]

    @cached_property
    def parts(self) -> list[tuple[slice, slice, Segments, Segments]]:
        """Neighbouring segments of at most ``LIMIT`` keys together: rows, keys and the lengths of both."""
        found, first, q, k = [], 0, 0, 0
        lengths = list(zip(self.queries.lengths, self.keys.lengths, strict=True))
        for last in range(len(lengths)):
            total = sum(n for _, n in lengths[first : last + 2])
            if last + 1 == len(lengths) or total > LIMIT:
                queries, keys = zip(*lengths[first : last + 1], strict=True)
                rows, read = slice(q, q + sum(queries)), slice(k, k + sum(keys))
                found.append((rows, read, Segments(queries, self.index.device), Segments(keys, self.index.device)))
                first, q, k = last + 1, rows.stop, read.stop
        return found

    @cached_property
    def groups(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Segments of about as many queries and equally many keys: rows int64 [S, m], keys int64 [S, n] as places in
        ``index``, and which of the rows are no repetition of the last, bool [S, m]."""
        q, n = torch.tensor(self.queries.lengths), torch.tensor(self.keys.lengths)
        start, read = q.cumsum(0) - q, n.cumsum(0) - n
        classes: dict[tuple[int, int], list[int]] = {}
        for i, lengths in enumerate(zip(q.tolist(), n.tolist(), strict=True)):
            classes.setdefault((rounded(lengths[0]), lengths[1]), []).append(i)
        found = []
        for (m, count), members in classes.items():
            for some in torch.tensor(members).split(max(1, LIMIT // count)):
                place = torch.arange(m).expand(len(some), -1)
                rows = start[some, None] + place.minimum(q[some, None] - 1)
                keys = read[some, None] + torch.arange(count)
                found.append(tuple(x.to(self.index.device) for x in (rows, keys, place < q[some, None])))
        return found

    @cached_property
    def inverse(self) -> Tensor:
        """Puts the rows of all groups, one after another, back in order."""
        return torch.cat([rows[real] for rows, _, real in self.groups]).argsort()


def rounded(n: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: at most a third of what is computed is in vain."""
    step = 1 << max(0, n.bit_length() - 2)
    return -(-n // step) * step


def gathered_attention(q: Tensor, k: Tensor, v: Tensor, lookup: Lookup, scale: float) -> Tensor:
    """Softmax attention of the rows of every segment to the keys that the segment reads.

    On a GPU in half precision one call of flash-attn or of torch's varlen attention for every ``LIMIT`` keys; elsewhere
    segments of about one length go through SDPA together. Cost: rows times the keys of their segment.

    Args:
        q, k, v: [N, H, d], the segments' rows one after another.
        lookup: which rows each segment has and reads.
        scale: factor on the scores.

    Returns:
        [N, H, d], dtype of ``v``.
    """
    if len(q) == 0:
        return torch.empty_like(v)
    kernel = varlen_kernel(q.device, q.dtype, q.shape[-1])
    if kernel is not None:
        out = []
        for rows, read, queries, keys in lookup.parts:
            pick = lookup.index[read]
            out.append(kernel(q[rows], k[pick], v[pick], queries, keys, scale))
        return torch.cat(out)
    return torch.cat(list(_by_groups(q, k, v, lookup, scale)))[lookup.inverse]


def _by_groups(q: Tensor, k: Tensor, v: Tensor, lookup: Lookup, scale: float) -> Iterator[Tensor]:
    for rows, keys, real in lookup.groups:
        pick = lookup.index[keys]
        a, b, c = (x.transpose(1, 2) for x in (q[rows], k[pick], v[pick]))
        yield scaled_dot_product_attention(a, b, c, scale=scale).transpose(1, 2)[real]
