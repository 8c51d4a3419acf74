"""Training windows: each epoch cuts every history anew, in an order that only the seed decides.

A window is a run of consecutive events of one user. Where order counts, all its events are targets,
each predicted from the profile and the events before it in the window; where it does not, part of
the window is held out and predicted from the rest. The cut differs from epoch to epoch, so
that a long history is not always broken at the same places. Every worker computes the same plan and
takes its share of each global batch; nothing depends on the number of workers. Pure NumPy.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtrec.data.splits import mix, uniform

# Share of the epochs in which a user who has a behaviour text is told by it instead of by the
# events that it tells.
P_TELL = 0.3


@dataclass(frozen=True, slots=True)
class Windows:
    """B windows of events.

    Attributes:
        user: (B,) int64, position of the user.
        start: (B,) int64, position of the first event.
        stop: (B,) int64, position after the last event; equal to `start` in a filler.
        tell: (B,) bool, whether the user's behaviour text stands in front.
    """

    user: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    tell: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user)

    def rows(self, index: NDArray[np.int64] | slice) -> "Windows":
        """Give the windows at these positions."""
        return Windows(self.user[index], self.start[index], self.stop[index], self.tell[index])


def cut_windows(
    offsets: NDArray[np.int64], length: int, cut: NDArray[np.int64], rng: np.random.Generator
) -> Windows:
    """Cut every history into windows of at most `length` events, at a random phase.

    Args:
        offsets: (U + 1,) int64, of the training histories.
        length: events in a window at most.
        cut: (U,) int64; a user's behaviour text tells the first `cut` events only; 0: no text.
        rng: decides phases and which users are told by text.

    Returns:
        Every event is in exactly one window. `tell` is true only for windows that start at or
        after the events that the text tells.
    """
    counts = np.diff(offsets)
    phase = rng.integers(1, length + 1, size=len(counts))
    told = (cut > 0) & (cut < counts) & (rng.random(len(counts)) < P_TELL)
    # Short histories stay whole: cutting them would only throw context away.
    first = np.where(told, np.minimum(cut, length), np.where(counts <= length, counts, phase))
    rest = np.maximum(counts - first, 0)
    pieces = np.where(counts > 0, 1 + -(-rest // length), 0)
    user = np.repeat(np.arange(len(counts)), pieces)
    order = np.arange(len(user)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = np.where(order == 0, 0, first[user] + (order - 1) * length)
    end = np.where(order == 0, first[user], first[user] + order * length)
    end = np.minimum(end, counts[user])
    tell = told[user] & (begin >= cut[user])
    return Windows(user, offsets[user] + begin, offsets[user] + end, tell)


def hold_out(
    user: NDArray[np.int64], item: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.bool_]:
    """Draw the events that a step hides and predicts from the others: (B, T) bool.

    A hash of the seed, the user and the item decides: all events of an item are hidden or none, and
    neither other windows nor the number of workers count.

    Args:
        user: (B,) positions of the windows' users.
        item: (B, T) positions of items; 0 (padding) and 1 (unknown) are never hidden.
        share: probability that an item is hidden.
        seed: another one draws anew.
    """
    width = item.shape[1]
    draw = uniform(mix(seed, np.repeat(user, width), item.ravel())).reshape(item.shape)
    return (draw < share) & (item > 1)


def global_batches(
    windows: Windows, batch_size: int, num_workers: int, rng: np.random.Generator
) -> Iterator[Windows]:
    """Shuffle windows into global batches; each is filled up to a multiple of the workers.

    Worker r takes `batch.rows(slice(r, None, num_workers))`. Fillers are empty windows: they have
    no targets, so they add nothing to a loss, and all workers take the same number of steps.
    """
    order = rng.permutation(len(windows))
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        batch = windows.rows(chosen)
        missing = -len(chosen) % num_workers
        if missing:
            filler = np.zeros(missing, np.int64)
            batch = Windows(
                np.concatenate([batch.user, filler]),
                np.concatenate([batch.start, filler]),
                np.concatenate([batch.stop, filler]),
                np.concatenate([batch.tell, filler.astype(bool)]),
            )
        yield batch
