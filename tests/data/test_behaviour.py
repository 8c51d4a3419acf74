import numpy as np
import pyarrow as pa

from mtrec.configfile import parse_config
from mtrec.data import splits
from mtrec.data.behaviour import tell_behaviour
from mtrec.data.histories import Histories

CONFIG = parse_config(
    {
        "data": {
            "interactions": {
                "path": "x",
                "timestamp": "timestamp",
                "columns": {"rating": {"kind": "number"}},
            },
            "items": {"path": "y", "columns": {"title": {"kind": "text"}}},
            "split": {"method": "leave_last_out"},
        },
        "text": {"behaviour": {"liked": "rating >= 4", "disliked": "rating <= 2", "max_items": 3}},
        "tasks": [{"name": "retrieval", "kind": "retrieval"}],
    }
)


def tell(users, held_out=()):
    """Tell users of whom each is a list of ratings of i0, i1, ...; the last two are held out.

    `held_out` names further (user, event) that are.
    """
    lengths = [len(ratings) for ratings in users]
    offsets = np.cumsum([0, *lengths])
    split = [np.repeat([splits.TRAIN, 1, 2], [length - 2, 1, 1]) for length in lengths]
    for user, event in held_out:
        split[user][event] = 1
    position = np.concatenate([np.arange(length) for length in lengths])
    histories = Histories(
        user_ids=np.array([f"u{number}" for number in range(len(users))], object),
        offsets=offsets,
        item_index=(position + 2).astype(np.int32),
        timestamp=position.astype(float),
        split=np.concatenate(split).astype(np.int8),
        numbers={},
        categories={},
        labels={},
    )
    names = pa.table({"name": [f"The i{n}" for n in range(max(lengths))]})
    known = pa.chunked_array([pa.array(position, pa.int32())])
    raw = {"rating": np.concatenate([np.array(ratings, float) for ratings in users])}
    texts, cuts = tell_behaviour(CONFIG, histories, position, raw, known, names)
    return texts.to_pylist(), cuts.tolist()


def test_training_events_before_the_cut_are_told(monkeypatch):
    monkeypatch.setattr(splits, "draw_between", lambda hashes, low, high: high)
    texts, cuts = tell([[5, 1, 4, 5, 5, 5, 5, 5, 5, 5]])
    # Eight training events, so the cut is at most 4: i0 to i3 are told, the latest three of them.
    assert cuts == [4]
    assert texts == ["liked: The i2, The i3; disliked: The i1"]


def test_held_out_events_before_the_cut_are_never_told():
    gone = {(user, user % 4) for user in range(30)}
    texts, cuts = tell([[5] * 12] * 30, gone)
    for user, (text, cut) in enumerate(zip(texts, cuts, strict=True)):
        told = text.removeprefix("liked: ").split(", ") if text else []
        assert told == [f"The i{n}" for n in range(cut) if (user, n) not in gone][-3:]
    assert len(set(cuts)) > 1


def test_short_histories_have_no_behaviour_text():
    texts, cuts = tell([[5, 5, 5, 5, 5], [5, 5, 5, 5, 5, 5]])
    assert (texts[0], cuts[0]) == (None, 0)
    assert (texts[1], cuts[1]) == ("liked: The i0, The i1", 2)


def test_a_user_with_nothing_to_tell_has_cut_zero():
    assert tell([[3] * 9]) == ([None], [0])
