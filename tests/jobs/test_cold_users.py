"""Cold users: what is asked, how answers are judged, and two models side by side."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

from _cold_users import TRAINED_ON, Question, compare, ndcg_of_lists, read_questions

from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.recommender import Recommender

if TYPE_CHECKING:
    from small_bundle import Small


def config(root: Path, **interactions: Any) -> Config:
    columns = {"stars": {"kind": "number", "source": "rating"}}
    return parse_config(
        {
            "data": {
                "root": str(root),
                "interactions": {
                    **{"path": "interactions.csv", "split": "split", "columns": columns},
                    **interactions,
                },
                "split": {"method": "column"},
            },
            "tasks": [{"name": "retrieval", "kind": "retrieval"}],
        }
    )


def test_a_question_gives_training_events_and_hides_what_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text(
        "user_id,item_id,rating,time,split\n"
        "1,07,4,100,train\n1,8,2.5,90,train\n1,9,1,95,validation\n1,10,5,80,test\n1,07,3,99,test\n"
        "2,8,3,50,train\n2,9,3,60,validation\n"
        "3,8,3,50,train\n3,8,2,60,test\n"
        "4,9,5,70,test\n"
    )

    found = read_questions(config(tmp_path, timestamp="time"))

    # Users 2 and 3 want nothing that is new to them; user 4 has no history to give.
    assert set(found) == {"1", "4"}
    assert found["1"].wanted == {"10"}
    assert found["1"].request == {
        "user_id": "1",
        "history": [
            {"item_id": "07", "stars": 4.0, "timestamp": 100.0},
            {"item_id": "8", "stars": 2.5, "timestamp": 90.0},
        ],
        "exclude": ["9"],
        "k": 10,
    }
    assert found["4"].request["history"] == []


def test_without_times_events_have_none(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text(
        "user_id,item_id,rating,split\n1,7,4,train\n1,8,2,test\n"
    )

    question = read_questions(config(tmp_path))["1"]

    assert question.request["history"] == [{"item_id": "7", "stars": 4.0}]


def test_ndcg_is_that_of_each_users_own_list(small: "Small") -> None:
    recommender = Recommender.load(small.path)
    items = [f"item-{at:02d}" for at in range(12)]
    asked = {
        "u1": Question(
            {"user_id": "u1", "history": [{"item_id": "item-03"}], "k": 3, "exclude": ["item-05"]},
            frozenset({"item-00", "item-04", "item-09", "item-11"}),
        ),
        "nobody knows": Question(
            {"history": [{"item_id": "item-01"}, {"item_id": "item-02"}], "k": 3},
            frozenset({"item-06"}),
        ),
        "met all but two": Question(
            {"history": [{"item_id": item} for item in items[:10]], "k": 3},
            frozenset({"item-11"}),
        ),
    }

    found = ndcg_of_lists(recommender, asked, 3)

    assert list(found) == list(asked)
    some = 0
    for user, question in asked.items():
        (answer,) = recommender.recommend([question.request])
        gain = 0.0
        for place, entry in enumerate(answer["recommendations"], start=1):
            if entry["item_id"] in question.wanted:
                gain += 1 / np.log2(place + 1)
                some += 1
        best = sum(1 / np.log2(place + 1) for place in range(1, min(3, len(question.wanted)) + 1))
        assert found[user] == pytest.approx(gain / best)
    assert some > 0


def test_ids_that_are_integers_are_found(small_integers: "Small") -> None:
    recommender = Recommender.load(small_integers.path)
    request = {"history": [{"item_id": "7"}], "k": 3}
    (answer,) = recommender.recommend([request])
    first = answer["recommendations"][0]["item_id"]

    assert isinstance(first, int)
    assert ndcg_of_lists(recommender, {"u": Question(request, frozenset({str(first)}))}, 3) == {
        "u": 1.0
    }


def test_the_ratio_is_of_the_same_users_whose_draws_are_paired() -> None:
    rng = np.random.default_rng(0)
    seen = {f"u{n}": float(value) for n, value in enumerate(rng.random(60))}
    # Every figure is nine tenths of the other, whoever is drawn; u59 is in no fold.
    unseen = [{f"u{n}": 0.9 * seen[f"u{n}"] for n in range(a, 59, 2)} for a in (0, 1)]

    tree = compare(unseen, seen, task="t", k=10, samples=100, seed=1)

    known = [seen[f"u{n}"] for n in range(59)]
    assert tree["model"]["t"]["ndcg@10"] == pytest.approx(0.9 * np.mean(known))
    assert tree["baselines"][TRAINED_ON]["t"]["ndcg@10"] == pytest.approx(np.mean(known))
    entry = tree["differences"][TRAINED_ON]["t"]["ndcg@10"]
    assert entry["relative"] == pytest.approx(-0.1)
    assert entry["relative_interval"] == pytest.approx([-0.1, -0.1])


def test_the_interval_draws_users_anew() -> None:
    rng = np.random.default_rng(0)
    cold, warm = rng.random((2, 40))
    names = sorted(f"u{n:02d}" for n in range(40))

    tree = compare(
        [dict(zip(names, cold, strict=True))],
        dict(zip(names, warm, strict=True)),
        task="t",
        k=10,
        samples=200,
        seed=3,
    )

    ratios = []
    for sample in range(200):
        drawn = np.random.default_rng([3, sample]).integers(0, 40, 40)
        ratios.append(cold[drawn].mean() / warm[drawn].mean() - 1)
    entry = tree["differences"][TRAINED_ON]["t"]["ndcg@10"]
    assert entry["relative_interval"] == pytest.approx(np.percentile(ratios, [2.5, 97.5]))
