"""Windows of different lengths end to end, so that no work goes to padding.

A few users have hundreds of events and most have dozens: padded to the longest, three quarters of
a batch may be padding. Pure torch.

Shape letters: B windows, T longest of them, V events of all windows, S places, X any further ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Ragged:
    """Where the events of B windows lie when window follows window.

    Attributes:
        length: (B,) int64, events of each window.
        row: (V,) int64, the window of each event.
        place: (V,) int64, its place there, 0 to length - 1.
    """

    length: Tensor
    row: Tensor
    place: Tensor

    @classmethod
    def of(cls, length_B: Tensor) -> "Ragged":
        """Lay out windows of these lengths."""
        row_V = torch.repeat_interleave(length_B)
        begin_B = length_B.cumsum(0) - length_B
        place_V = torch.arange(len(row_V), device=row_V.device) - begin_B[row_V]
        return cls(length_B, row_V, place_V)

    def pack(self, values_BTX: Tensor) -> Tensor:
        """Take the events out of a padded batch (B, T, ...): (V, ...)."""
        return values_BTX[self.row, self.place]

    def pad(self, values_VX: Tensor) -> Tensor:
        """Give a padded batch (B, T, X), zeros where a window has no event."""
        batch, events = len(self.length), len(values_VX)
        width = int(self.length.max()) if batch else 0
        if events == batch * width:
            return values_VX.view(batch, width, values_VX.shape[-1])
        padded = values_VX.new_zeros(batch, width, values_VX.shape[-1])
        return padded.index_put((self.row, self.place), values_VX)

    def total(self, values_VX: Tensor) -> Tensor:
        """Give each window's sum: (B, X)."""
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
        begin_B = self.length.cumsum(0) - self.length
        is_event_S = place_S < self.length[row_S]
        event_S = torch.where(is_event_S, begin_B[row_S] + place_S, len(values_VX))
        if group_V is None:
            own_SX = functional.pad(values_VX, (0, 0, 0, 1))[event_S]
        else:
            number = int(group_V.max()) + 1 if len(group_V) else 0
            sums_GX = values_VX.new_zeros(number + 1, values_VX.shape[-1])
            sums_GX = sums_GX.index_add(0, group_V, values_VX)
            own_SX = sums_GX[functional.pad(group_V, (0, 1), value=number)[event_S]]
        return self.total(values_VX)[row_S] - own_SX
