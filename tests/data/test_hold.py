"""HoldMap: rows, columns and what is refused."""

from __future__ import annotations

import pytest
import torch

from vtoken.data.hold import HoldMap
from vtoken.errors import InputError


def test_a_map_of_placeholders():
    visual = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]]).bool()
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    hold = HoldMap.of([torch.tensor([1, 1, -1]), torch.tensor([0, 0, 3, 3])], visual, mask)
    assert hold.shows.tolist() == [[-1, 1, 3, 3, -1, 5], [0, 1, 1, 4, 4, 5]]
    assert [own.tolist() for own in hold.columns()] == [[1, 3, 5], [0, 1, 4, 5]]
    assert hold.holds() and not hold.is_identity(mask)
    plain = HoldMap.of([torch.arange(3), torch.arange(4)], visual, mask)
    assert plain.is_identity(mask) and not plain.holds() and not plain.is_identity()


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: HoldMap(torch.tensor([[1, 2, 2]])), "does not show itself"),
        (lambda: HoldMap(torch.tensor([[0, 3, 2]])), "below 3"),
        (lambda: HoldMap(torch.tensor([0, 1])), r"\[batch, columns\]"),
        (lambda: HoldMap.of([torch.tensor([0])], torch.ones(1, 2).bool()), "one a placeholder"),
        (lambda: HoldMap.of([torch.tensor([0, 2])], torch.ones(1, 2).bool()), "below 2"),
        (lambda: HoldMap.of([], torch.ones(1, 2).bool()), "samples"),
    ],
)
def test_what_makes_no_sense_is_refused(make, told):
    with pytest.raises(InputError, match=told):
        make()
