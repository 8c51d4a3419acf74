"""Windows end to end, against loops over windows and events."""

import pytest
import torch

from mtrec.model.ragged import Ragged

LENGTHS = torch.tensor([2, 0, 4, 1])


@pytest.fixture
def layout() -> Ragged:
    return Ragged(LENGTHS, 4)


def test_events_follow_window_by_window(layout: Ragged) -> None:
    assert layout.row.tolist() == [0, 0, 2, 2, 2, 2, 3]
    assert layout.place.tolist() == [0, 1, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("lengths", [[2, 0, 4, 1], [3, 3], [5], [0], []])
@pytest.mark.parametrize("more", [0, 2])
def test_what_is_packed_comes_back_padded_with_zeros(lengths: list[int], more: int) -> None:
    width = max(lengths, default=0) + more
    layout = Ragged(torch.tensor(lengths, dtype=torch.int64), width)
    padded = torch.randn(len(lengths), width, 3)
    for row, length in enumerate(lengths):
        padded[row, length:] = 0.0
    packed = layout.pack(padded)
    assert packed.shape == (sum(lengths), 3)
    assert torch.equal(layout.pad(packed), padded)
    assert torch.allclose(layout.total(packed), padded.sum(1), atol=1e-6)


@pytest.mark.parametrize("lengths", [[2, 0, 4, 1], [3, 3], [5], [0]])
def test_what_lies_behind_the_last_event_is_at_the_length(lengths: list[int]) -> None:
    layout = Ragged(torch.tensor(lengths), max(lengths))
    states = torch.randn(len(lengths), max(lengths) + 1, 3)
    expected = torch.stack([states[row, length] for row, length in enumerate(lengths)])
    assert torch.equal(layout.at_end(states), expected)


def test_sums_equal_a_loop_over_windows(layout: Ragged) -> None:
    values = torch.randn(7, 3)
    expected = torch.stack([values[:2].sum(0), torch.zeros(3), values[2:6].sum(0), values[6]])
    assert torch.allclose(layout.total(values), expected, atol=1e-6)


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 2, 1, 3, 4]])
def test_what_lies_at_a_place_is_left_out_with_its_group(
    layout: Ragged, groups: list[int] | None
) -> None:
    values = torch.randn(7, 3)
    own = list(range(7)) if groups is None else groups
    asked, expected = [], []
    for row, length in enumerate(LENGTHS.tolist()):
        begin = int(LENGTHS[:row].sum())
        for place in range(length + 1):
            asked.append((row, place))
            left_out = own[begin + place] if place < length else -1
            kept = [
                values[event] for event in range(begin, begin + length) if own[event] != left_out
            ]
            expected.append(torch.stack([torch.zeros(3), *kept]).sum(0))
    asked, expected = asked[::-1], expected[::-1]
    group_V = None if groups is None else torch.tensor(groups)
    found = layout.total_without(values, *torch.tensor(asked).T, group_V)
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)


def test_without_any_event_sums_are_zero() -> None:
    layout = Ragged(torch.zeros(2, dtype=torch.int64), 1)
    nothing, one = torch.zeros(0, dtype=torch.int64), torch.tensor([1])
    for group in (None, nothing):
        found = layout.total_without(torch.zeros(0, 3), one, torch.tensor([0]), group)
        assert torch.equal(found, torch.zeros(1, 3))
