"""The removal test: does an item fall once what its explanation names was never in the history?

`evaluate` has it measured on a sample of users. An explanation is a claim about what would happen;
here it happens: the recommender is asked again with a history that lacks the reason, and what
counts is read from the fresh answer, not from the numbers of the explanation. No files, no Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtrec.catalogue import NUM_SPECIAL
from mtrec.comparison import Tree
from mtrec.data.histories import Histories, last_windows
from mtrec.intervals import wilson
from mtrec.recommender import Recommender
from mtrec.tuning import Watch

CANDIDATES = 1000
"""Places of a fresh answer that are read; what is not among them is at the place after the last."""

FIGURES = ("holds", "every", "falls", "control")

_USERS_PER_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Standing:
    """Where B users' items stand in an answer.

    Attributes:
        place: (B,) int64, 1 for the item with the largest retrieval number.
        share: (B,) float64, the item's retrieval number over the sum of all that were read.
    """

    place: NDArray[np.int64]
    share: NDArray[np.float64]

    def is_above(self, later: "Standing") -> NDArray[np.bool_]:
        """Tell whose item stands lower in a later answer: (B,) bool.

        A later place, or the same with a smaller share; an item that was first is often first
        still, its lead smaller.
        """
        same = later.place == self.place
        lower: NDArray[np.bool_] = (later.place > self.place) | (same & (later.share < self.share))
        return lower


def removal_test(
    recommender: Recommender,
    histories: Histories,
    *,
    num_users: int,
    seed: int,
    watch: Watch | None = None,
) -> Tree:
    """Measure for how many users the best item stands lower without its first reason.

    Each user is asked for the best item with its explanation, then again with the history without
    the events of the first reason, and, as a control, without those of another item of the history
    that the explanation does not name, drawn at random. What may be listed stays the same: the
    removed item does not come back as a candidate, for its mere return would push others down.

    Args:
        recommender: what is asked.
        histories: what is known of users; those with two different items at least can be drawn.
        num_users: how many users are drawn at most.
        seed: decides the draws.
        watch: is told now and then how many users are done.

    Returns:
        `users`, how many were drawn; `without_reason`, those whose best item has none and who count
        no further; and, of the others, for `holds` (it stands lower without the first reason),
        `every` (and without each other reason, removed alone), `falls` (it is at a later place
        without the first) and `control` (it stands lower without the other item): `count`, `of`,
        `share` and its 95 % `interval` (Wilson).
    """
    rng = np.random.default_rng([seed, num_users])
    histories = histories.select(histories.item_index >= NUM_SPECIAL)
    drawn = np.flatnonzero(_num_distinct(histories) >= 2)
    drawn = np.sort(rng.choice(drawn, min(num_users, len(drawn)), replace=False))
    found: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in FIGURES}
    for start in range(0, len(drawn), _USERS_PER_BLOCK):
        known = histories.rows(drawn[start : start + _USERS_PER_BLOCK])
        for name, holds in _test(recommender, known, rng).items():
            found[name].append(holds)
        if watch is not None:
            watch(start + len(known))
    counted = {name: np.concatenate([np.zeros(0, bool), *parts]) for name, parts in found.items()}
    return {
        "users": len(drawn),
        "without_reason": len(drawn) - len(counted["holds"]),
        **{name: _share_json(holds) for name, holds in counted.items()},
    }


def _test(
    recommender: Recommender, histories: Histories, rng: np.random.Generator
) -> dict[str, NDArray[np.bool_]]:
    """Test B users: for each figure, bool, those whom it counts."""
    lists = recommender.rank_lists(histories, k=1, with_tasks=False)
    why = recommender.explain_lists(histories, lists)
    reasons = [found[0].reasons if found else np.zeros(0, np.int32) for found in why]
    rows = np.array([row for row, named in enumerate(reasons) if len(named)], np.int64)
    if not len(rows):
        return {}
    reasons = [reasons[row] for row in rows]
    known, item = histories.rows(rows), lists.item_index[rows, 0]
    before = _ask(recommender, known, known, item)

    def ask_without(removed: NDArray[np.int64]) -> Standing:
        return _ask(recommender, _without(known, removed), known, item)

    # Who has fewer reasons than others is asked again without the last one.
    after = [
        ask_without(np.array([named[min(at, len(named) - 1)] for named in reasons], np.int64))
        for at in range(max(map(len, reasons)))
    ]
    holds = np.array([before.is_above(one) for one in after])
    length = recommender.bundle.config.model.history.length
    other = _draw_others(known, reasons, length, rng)
    return {
        "holds": holds[0],
        "every": holds.all(axis=0),
        "falls": np.asarray(after[0].place > before.place),
        "control": before.is_above(ask_without(other))[other > 0],
    }


def _ask(
    recommender: Recommender, histories: Histories, whole: Histories, item: NDArray[np.int32]
) -> Standing:
    """Read from an answer to B histories where each user's item (B,) stands.

    `whole` are the undisturbed histories, whose items are not listed.
    """
    exclude = np.split(whole.item_index, whole.offsets[1:-1])
    lists = recommender.rank_lists(histories, k=CANDIDATES, exclude=exclude, with_tasks=False)
    is_item = lists.item_index == item[:, None]
    is_there = is_item.any(axis=1)
    own = np.where(is_there, (lists.retrieval * is_item).sum(axis=1, where=is_item), 0.0)
    total = np.nansum(lists.retrieval, axis=1)
    larger = (lists.retrieval > own[:, None]).sum(axis=1)
    place = np.where(is_there, 1 + larger, CANDIDATES + 1)
    return Standing(place, own / np.where(total > 0.0, total, 1.0))


def _without(histories: Histories, item: NDArray[np.int64]) -> Histories:
    """Take from each of B histories the events of one item (B,); 0 takes none."""
    return histories.select(histories.item_index != item[histories.event_user])


def _draw_others(
    histories: Histories,
    named: Sequence[NDArray[np.int32]],
    length: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw for each user one of the latest `length` events' items that no reason names.

    (B,) positions; 0 where there is none.
    """
    starts, stops = last_windows(histories, length)
    drawn = np.zeros(len(histories), np.int64)
    for row, reasons in enumerate(named):
        others = np.setdiff1d(histories.item_index[starts[row] : stops[row]], reasons)
        if len(others):
            drawn[row] = rng.choice(others)
    return drawn


def _num_distinct(histories: Histories) -> NDArray[np.int64]:
    """Count each user's different items: (U,) int64."""
    pairs = np.unique((histories.event_user << 32) | histories.item_index.astype(np.int64))
    return np.bincount(pairs >> 32, minlength=len(histories))


def _share_json(holds: NDArray[np.bool_]) -> Tree:
    """Give the share of what holds (R,) with its interval; without rows there is neither."""
    counts: Tree = {"count": int(holds.sum()), "of": len(holds)}
    if not len(holds):
        return counts
    found = wilson(int(holds.sum()), len(holds))
    return {**counts, "share": found.value, "interval": [found.low, found.high]}
