"""Windows of different lengths end to end, so that no work goes to padding.

A few users have hundreds of events and most have dozens: padded to the longest, three quarters of
a batch may be padding. Pure torch.

Shape letters: B windows, T longest of them, V events of all windows, S places, X any further ones.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Ragged:
    """Where the events of B windows lie when window follows window.

    Attributes:
        length: (B,) int64, events of each window.
        width: T, what the padded batch has room for.
    """

    length: Tensor
    width: int

    @cached_property
    def is_full(self) -> bool:
        """Whether there is no padding, as with a single window; then nothing has to be moved."""
        return int(self.length.sum()) == len(self.length) * self.width

    @cached_property
    def row(self) -> Tensor:
        """The window of each event: (V,) int64."""
        return torch.repeat_interleave(self.length)

    @cached_property
    def begin(self) -> Tensor:
        """The number of each window's first event: (B,) int64."""
        return self.length.cumsum(0) - self.length

    @cached_property
    def place(self) -> Tensor:
        """Each event's place in its window, 0 to length - 1: (V,) int64."""
        return torch.arange(len(self.row), device=self.row.device) - self.begin[self.row]

    def pack(self, values_BTX: Tensor) -> Tensor:
        """Take the events out of a padded batch (B, T, ...): (V, ...)."""
        return values_BTX.flatten(0, 1) if self.is_full else values_BTX[self.row, self.place]

    def pad(self, values_VX: Tensor) -> Tensor:
        """Give a padded batch (B, T, X), zeros where a window has no event."""
        shape = len(self.length), self.width, values_VX.shape[-1]
        if self.is_full:
            return values_VX.view(shape)
        return values_VX.new_zeros(shape).index_put((self.row, self.place), values_VX)

    def at_end(self, values_BTX: Tensor) -> Tensor:
        """Give what lies behind each window's last event: (B, T + 1, X) -> (B, X)."""
        if self.is_full:  # for a single window a fifth of an index's time
            return values_BTX[:, -1]
        return values_BTX[torch.arange(len(self.length), device=self.length.device), self.length]

    def total(self, values_VX: Tensor) -> Tensor:
        """Give each window's sum: (B, X)."""
        if self.is_full:
            return self.pad(values_VX).sum(1)
        sums_BX = values_VX.new_zeros(len(self.length), values_VX.shape[-1])
        return sums_BX.index_add(0, self.row, values_VX)

    def total_without(
        self, values_VX: Tensor, row_S: Tensor, place_S: Tensor, group_V: Tensor | None = None
    ) -> Tensor:
        """Give the sums of windows `row_S` without what lies at `place_S`: (S, X).

        Args:
            values_VX: what to sum.
            row_S: int64.
            place_S: int64, 0 to the window's length; there is nothing at the length.
            group_V: int64, a number from 0 on for each event: the whole group of the event at the
                place is left out. None: the event alone.
        """
        is_event_S = place_S < self.length[row_S]
        event_S = torch.where(is_event_S, self.begin[row_S] + place_S, len(values_VX))
        if group_V is None:
            own_SX = functional.pad(values_VX, (0, 0, 0, 1))[event_S]
        else:
            number = int(group_V.max()) + 1 if len(group_V) else 0
            sums_GX = values_VX.new_zeros(number + 1, values_VX.shape[-1])
            sums_GX = sums_GX.index_add(0, group_V, values_VX)
            own_SX = sums_GX[functional.pad(group_V, (0, 1), value=number)[event_S]]
        return self.total(values_VX)[row_S] - own_SX
