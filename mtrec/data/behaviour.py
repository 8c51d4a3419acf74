"""Behaviour text: what a user liked and disliked first, told in words for the language model."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.config import BehaviourText, Config
from mtrec.data import splits
from mtrec.data.histories import Histories
from mtrec.labels import label_values

MIN_EVENTS_TO_TELL = 4
"""Users with fewer training events get no behaviour text: nothing would be left to predict."""


def tell_behaviour(
    config: Config,
    histories: Histories,
    position: NDArray[np.int64],
    raw: dict[str, NDArray[np.float64]],
    known: pa.ChunkedArray,
    items: pa.Table,
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Tell the first training events of each user as text; give texts (U,) and cuts (U,) int64.

    The cut is drawn per user from 2 to half the training events, so that the events from the cut on
    are left to be predicted from the text. A user with nothing to tell has no text and cut 0.

    Args:
        config: `text.behaviour` and `run.seed`.
        histories: U users with E events.
        position: (E,) place of each event in its user's history.
        raw: number column -> (E,) values as in the source, NaN where missing.
        known: (E,) place of each event's item in `items`, null if it is not there.
        items: the catalogue, with `name`.
    """
    behaviour = config.text.behaviour
    cuts = np.zeros(len(histories), np.int64)
    if behaviour is None:
        return pa.nulls(len(histories), pa.string()), cuts
    owner = histories.event_user
    train = histories.split == splits.TRAIN
    trained = np.bincount(owner[train], minlength=len(histories))
    hashes = splits.hash_strings(pa.array(histories.user_ids, pa.string()))
    enough = trained >= MIN_EVENTS_TO_TELL
    high = np.maximum(trained // 2, 2)
    drawn = splits.draw_between(splits.mix(config.run.seed, hashes), np.full_like(high, 2), high)
    cuts[enough] = drawn[enough]
    liked = label_values(behaviour.liked, raw) == 1
    disliked = np.zeros_like(liked)
    if behaviour.disliked is not None:
        disliked = (label_values(behaviour.disliked, raw) == 1) & ~liked
    names = items.column("name").take(known)
    named = np.asarray(pc.fill_null(pc.not_equal(names, ""), False))
    told = np.flatnonzero(train & (position < cuts[owner]) & (liked | disliked) & named)
    told = _latest(told, owner, behaviour)
    splits.assert_told_from_training(position[told], cuts[owner[told]], histories.split[told])
    parts: dict[int, tuple[list[str], list[str]]] = {}
    for event, name in zip(told.tolist(), names.take(pa.array(told)).to_pylist(), strict=True):
        parts.setdefault(int(owner[event]), ([], []))[0 if liked[event] else 1].append(name)
    texts: list[str | None] = [None] * len(histories)
    for user, (good, bad) in parts.items():
        texts[user] = _sentence(good, bad)
    cuts[[n for n, text in enumerate(texts) if text is None]] = 0
    return pa.array(texts, pa.string()), cuts


def _sentence(liked: Sequence[str], disliked: Sequence[str]) -> str:
    told = (("liked", liked), ("disliked", disliked))
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in told if names)


def _latest(
    told: NDArray[np.int64], owner: NDArray[np.int64], behaviour: BehaviourText
) -> NDArray[np.int64]:
    """Keep each user's latest `max_items` of the events told, which are in order."""
    users = owner[told]
    last = np.searchsorted(users, users, side="right")
    return told[last - np.arange(len(told)) <= behaviour.max_items]
