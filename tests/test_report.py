"""The tree of `report.json`: what is in it, and what is left out when it is undefined."""

import json
from typing import Any

import numpy as np
import pytest
from small_bundle import small_config

from mtrec.comparison import MODEL, ItemFacts
from mtrec.data.histories import Histories
from mtrec.report import Answers, build_report
from mtrec.report_text import summary_table

K = 3


def _histories(num_users: int = 6, *, test: bool = True) -> Histories:
    """Give users with events 2, 3, (validation) 4 and (test) 5, rated 1, 5, 3 and 4."""
    per_user = 4 if test else 3
    rating = np.tile(np.array([1.0, 5.0, 3.0, 4.0], np.float32)[:per_user], num_users)
    return Histories(
        user_ids=np.array([f"u{at}" for at in range(num_users)], object),
        offsets=np.arange(num_users + 1, dtype=np.int64) * per_user,
        item_index=np.tile(np.array([2, 3, 4, 5], np.int32)[:per_user], num_users),
        timestamp=np.full(per_user * num_users, np.nan),
        split=np.tile(np.array([0, 0, 1, 2], np.int8)[:per_user], num_users),
        labels={"stars": rating, "like": (rating >= 4).astype(np.float32)},
    )


def _report(
    histories: Histories,
    *,
    splits: tuple[str, ...] = ("validation", "test"),
    candidates: str = "all",
    stars: float = 3.5,
) -> Any:
    config = small_config()
    evaluate = {"k": K, "bootstrap_samples": 100, "candidates": candidates}
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=evaluate)})
    users = len(histories)
    answered = {}
    for split in splits:
        known = histories.item_index >= 2
        rows = int((known & (histories.split == (1 if split == "validation" else 2))).sum())
        found = np.tile(np.array([5, 6, 7], np.int32), (users, 1))
        found[0] = [6, 5, 7]  # one user has the test item at place 2
        popular = np.tile(np.array([6, 7, 8], np.int32), (users, 1))
        answered[split] = {
            MODEL: Answers(found, {"stars": np.full(rows, stars), "like": np.full(rows, 0.9)}),
            "popularity": Answers(popular, {}),
            "bias": Answers(None, {"stars": np.full(rows, 3.0), "like": np.full(rows, 0.6)}),
        }
    return build_report(
        config,
        histories=histories,
        items=ItemFacts(np.array([0, 0, 6, 6, 0, 0, 0, 0, 0]), None),
        answered=answered,
        tuned={"bias": {"stars": {"settings": {"reg_user": 2.0}, "tried": 3}}},
        notes=["said before"],
    )


def test_report_has_the_promised_keys_and_is_json() -> None:
    report = _report(_histories())
    assert {"protocol", "model", "baselines", "slices", "intervals"} <= set(report)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_protocol_counts_events_users_and_test_events_without_an_item() -> None:
    histories = _histories()
    histories.item_index[3] = 1  # the first user's test event
    protocol = _report(histories)["protocol"]
    assert protocol["events"] == {"train": 12, "validation": 6, "test": 6}
    assert (protocol["users"], protocol["test_users"], protocol["items"]) == (6, 6, 7)
    assert protocol["test_events_of_unknown_items"] == 1
    assert protocol["tasks"] == {"click": "retrieval", "stars": "regression", "like": "binary"}


def test_figures_are_found_by_method_task_and_metric() -> None:
    report = _report(_histories())
    assert report["model"]["click"]["hr@3"] == 1.0
    assert report["model"]["click"]["mrr@3"] == pytest.approx((5 + 0.5) / 6)
    assert report["model"]["stars"]["rmse"] == pytest.approx(0.5)
    assert report["baselines"]["popularity"]["click"]["hr@3"] == 0.0
    assert report["baselines"]["bias"]["stars"]["rmse"] == pytest.approx(1.0)
    assert "click" not in report["baselines"]["bias"]
    assert report["intervals"]["model"]["stars"]["rmse"] == pytest.approx([0.5, 0.5])


def test_differences_are_model_minus_baseline() -> None:
    entry = _report(_histories())["differences"]["bias"]["stars"]["rmse"]
    assert entry["difference"] == pytest.approx(-0.5)
    assert entry["relative"] == pytest.approx(-0.5)
    assert entry["relative_interval"] == pytest.approx([-0.5, -0.5])


def test_a_baseline_that_is_better_beyond_the_interval_is_named() -> None:
    # Everybody's rating on test is 4: the model says 3.5, bias 3, and popularity misses item 5.
    ours = _report(_histories())
    assert not any("beyond the interval" in note for note in ours["notes"])
    behind = _report(_histories(), stars=1.0)
    (note,) = [note for note in behind["notes"] if "beyond the interval" in note]
    assert note.startswith("stars: beyond the interval of the difference rmse is better of bias;")


def test_validation_has_figures_of_its_own_events() -> None:
    report = _report(_histories())
    # The validation item is 4, which nobody lists; its rating is 3, the model says 3.5.
    assert report["validation"]["model"]["click"]["hr@3"] == 0.0
    assert report["validation"]["model"]["stars"]["rmse"] == pytest.approx(0.5)
    assert report["validation"]["baselines"]["bias"]["stars"]["rmse"] == 0.0


def test_of_cold_candidates_only_they_count_and_the_protocol_says_so() -> None:
    histories = _histories()
    histories.item_index[7] = 6  # the second user's test item, which the third met in training
    histories.item_index[8] = 6
    report = _report(histories, candidates="cold")
    # Five users are left, and the first has item 5 at place 2.
    assert report["protocol"]["test_users"] == 5
    assert report["model"]["click"]["mrr@3"] == pytest.approx((4 + 0.5) / 5)
    assert report["protocol"]["ranking"].startswith("the items that have no event before the split")
    assert any(
        note.startswith("click: 1 of 6 test events") and "that others had met" in note
        for note in report["notes"]
    )


def test_items_met_before_are_left_out_and_unknown_ones_are_misses() -> None:
    histories = _histories()
    histories.item_index[7] = 2  # the second user's test item, which he has met
    histories.item_index[[11, 15]] = 1  # the third's and fourth's are unknown
    report = _report(histories)

    assert report["protocol"]["test_users"] == 5
    assert report["model"]["click"]["hr@3"] == pytest.approx(3 / 5)
    notes = [note for note in report["notes"] if "of 6 test events" in note]
    assert notes[0].startswith("click: 1 of 6 test events are of items that their user had met")
    assert notes[1].startswith("click: 2 of 6 test events are of items that neither training nor")


def test_auc_of_one_class_is_absent() -> None:
    # Every test label is 4 stars, a like.
    like = _report(_histories())["model"]["like"]
    assert "auc" not in like
    assert like["accuracy"] == 1.0
    assert like["logloss"] == pytest.approx(-np.log(0.9))


def test_without_test_events_there_are_notes_and_no_figures() -> None:
    report = _report(_histories(test=False))
    assert report["model"] == {}
    assert report["validation"]["model"]["stars"]["rmse"] == pytest.approx(0.5)
    assert summary_table(report).endswith(
        "note: click, stars, like: no figures on test, no event there can be judged"
    )


def test_a_split_that_nobody_answered_for_is_left_out() -> None:
    report = _report(_histories(), splits=("test",))
    assert report["validation"]["model"] == {}
    assert report["model"]["click"]["hr@3"] == 1.0
    assert not any("validation" in note for note in report["notes"])
