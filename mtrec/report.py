"""The tree of `report.json`. Pure.

`evaluate.py` brings what the model and every baseline say about each split; this module has it
measured (`comparison.py`) and puts the numbers into their lasting form, which `report_page.py`
makes a page of and `report_text.py` a few lines. Figures that are undefined are absent, and a note
says why.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrec import baselines, comparison
from mtrec.comparison import MODEL, Draws, Figures, ItemFacts, Rows, Tree
from mtrec.config import Candidates, Config
from mtrec.data.histories import SPLITS, Histories
from mtrec.data.links import Links
from mtrec.friends import friend_relevance
from mtrec.intervals import Figure
from mtrec.metrics import LOWER_IS_BETTER, Floats, Relevance
from mtrec.modelconfig import BinaryTask, RegressionTask, SocialTask, label_tasks


@dataclass(frozen=True, slots=True)
class Answers:
    """What one method says about one split.

    Attributes:
        lists: (U, k) int32 positions, best first, padded with 0; None: the method does not rank.
        predictions: task -> (P,) float64, for the labelled rows of the split in their order.
        friends: (V, k) int32, lists of friends of all users as `friends.metric_lists` gives them.
    """

    lists: NDArray[np.int32] | None
    predictions: dict[str, Floats]
    friends: NDArray[np.int32] | None = None


Answered = dict[str, dict[str, Answers]]
"""Split -> method -> answers."""

# A difference that nobody measured.
_NOWHERE: dict[str, Any] = {"interval": [0.0, 0.0]}


def build_report(
    config: Config,
    *,
    histories: Histories,
    items: ItemFacts,
    answered: Answered,
    tuned: Mapping[str, Tree],
    notes: Sequence[str],
    links: Links | None = None,
) -> Tree:
    """Turn answers into the tree of `report.json`; pure.

    Args:
        config: the run.
        histories: all events.
        items: what metrics need of the items.
        answered: what the model and the baselines say about each split.
        tuned: what tuning chose.
        notes: what a reader must know; notes on absent figures are added.
        links: all links, for a social task.
    """
    notes = list(notes)
    test = measure(config, histories, items, answered.get("test", {}), "test", links=links)
    validation = measure(
        config, histories, items, answered.get("validation", {}), "validation", links, samples=0
    )
    for split, figures in (("test", test), ("validation", validation)):
        bare = [
            task.name
            for task in config.tasks
            if not any(figures.get(task.name, {}).get(MODEL, {}).values())
        ]
        # A model that was fitted on a split is not asked about it, which has a note of its own.
        if bare and MODEL in answered.get(split, {}):
            notes.append(f"{', '.join(bare)}: no figures on {split}, no event there can be judged")
    notes += _masked(config, histories, items, answered)
    model = {name: comparison.values_json(f[MODEL]) for name, f in test.items() if MODEL in f}
    names = [name for name in answered.get("test", {}) if name != MODEL]
    report: Tree = {
        "protocol": describe_protocol(config, histories, items, links),
        "model": model,
        "baselines": {name: _of(test, name, comparison.values_json) for name in names},
        "intervals": {name: _of(test, name, comparison.intervals_json) for name in [MODEL, *names]},
        "differences": {
            name: {
                task: comparison.differences_json(figures[MODEL], figures[name])
                for task, figures in test.items()
                if name in figures
            }
            for name in names
        },
        "slices": _slices(config, histories, items, links, answered.get("test", {})),
        "validation": {
            "model": _of(validation, MODEL, comparison.values_json),
            "baselines": {name: _of(validation, name, comparison.values_json) for name in names},
        },
        "tuned": dict(tuned),
        "notes": notes,
    }
    notes += _behind(config, report)
    return {**report, **_pictures(config, histories, answered.get("test", {}))}


def _behind(config: Config, report: Mapping[str, Any]) -> list[str]:
    """Name the tasks in which a baseline is better beyond the interval of the difference."""
    k = config.evaluate.k
    main = {"retrieval": f"ndcg@{k}", "social": f"ndcg@{k}", "regression": "rmse", "binary": "auc"}
    found = []
    for task in config.tasks:
        metric = main[task.kind]
        sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
        better = [
            name
            for name, tree in report["differences"].items()
            if min(sign * end for end in tree.get(task.name, {}).get(metric, _NOWHERE)["interval"])
            > 0.0
        ]
        if better:
            found.append(
                f"{task.name}: beyond the interval of the difference {metric} is better of "
                f'{", ".join(better)}; "Little data" in the README says what to try'
            )
    return found


def _of(
    measured: Mapping[str, Figures], name: str, to_json: Callable[[Mapping[str, Figure]], object]
) -> Tree:
    return {task: to_json(figures[name]) for task, figures in measured.items() if name in figures}


def measure(
    config: Config,
    histories: Histories,
    items: ItemFacts,
    answers: Mapping[str, Answers],
    split: str,
    links: Links | None = None,
    *,
    samples: int | None = None,
) -> dict[str, Figures]:
    """Give task -> method -> metric -> figure on one split; tasks without rows are left out.

    Args:
        config: the run; its seed decides which users are drawn for the intervals.
        histories: all events.
        items: what metrics need of the items.
        answers: what each method says about the split.
        split: which one.
        links: all links, for a social task.
        samples: resamples behind each interval; by default `evaluate.bootstrap_samples`.
    """
    if samples is None:
        samples = config.evaluate.bootstrap_samples
    draws = Draws(samples, config.run.seed)
    measured: dict[str, Figures] = {}
    for task in config.tasks:
        if isinstance(task, RegressionTask | BinaryTask):
            rows = _rows(histories, task, split)
            predictions = _predictions(answers, task.name)
            if len(rows.truth) and predictions:
                measured[task.name] = comparison.compare_predictions(predictions, rows, draws)
        elif links is not None and isinstance(task, SocialTask):
            relevance = friend_relevance(links.of(split))
            lists = _friends(answers)
            if relevance.count.any() and lists:
                facts = ItemFacts(_links_each(links.of("train")), None)
                measured[task.name] = comparison.compare_lists(lists, relevance, facts, draws)
        else:
            relevance = _relevance(config, histories, items, split)
            lists = _lists(answers)
            if relevance.count.any() and lists:
                measured[task.name] = comparison.compare_lists(lists, relevance, items, draws)
    return measured


def _masked(
    config: Config, histories: Histories, items: ItemFacts, answered: Answered
) -> Iterator[str]:
    """Say how many held-out events no list is judged by, and how many every list must miss."""
    retrieval = next(task.name for task in config.tasks if task.kind == "retrieval")
    for split in answered:
        held_out = int((histories.split == SPLITS.index(split)).sum())
        relevance = _relevance(config, histories, items, split)
        left_out = held_out - int(relevance.count.sum())
        if left_out:
            yield (
                f"{retrieval}: {left_out} of {held_out} {split} events are of items that their "
                f"user had met before{_WARM[config.evaluate.candidates]}, or repeat another; "
                "lists leave those out, and so do figures"
            )
        unknown = int((histories.item_index[histories.split == SPLITS.index(split)] < 2).sum())
        if unknown:
            yield (
                f"{retrieval}: {unknown} of {held_out} {split} events are of items that neither "
                "training nor an items table has; no list can hold them, and each is a miss"
            )


def _slices(
    config: Config,
    histories: Histories,
    items: ItemFacts,
    links: Links | None,
    answers: Mapping[str, Answers],
) -> Tree:
    length = np.diff(histories.before("test").offsets)
    slices: Tree = {}
    for task in config.tasks:
        if isinstance(task, RegressionTask | BinaryTask):
            chosen = baselines.labelled_rows(histories, task.name, "test")
            slices[task.name] = comparison.slice_predictions(
                _predictions(answers, task.name),
                _rows(histories, task, "test"),
                history_length=length,
                train_count=items.train_count[histories.item_index[chosen]],
            )
        elif links is not None and isinstance(task, SocialTask):
            known = _links_each(links.before("test"))
            found = comparison.slice_lists(
                _friends(answers),
                friend_relevance(links.of("test")),
                history_length=known[2:],
                train_count=known,
            )
            names = {"history_length": "links_of_user", "item_train_count": "links_of_friend"}
            slices[task.name] = {names[kind]: part for kind, part in found.items()}
        else:
            slices[task.name] = comparison.slice_lists(
                _lists(answers),
                _relevance(config, histories, items, "test"),
                history_length=length,
                train_count=items.train_count,
            )
    return {name: found for name, found in slices.items() if found}


def _pictures(
    config: Config, histories: Histories, answers: Mapping[str, Answers]
) -> dict[str, Tree]:
    """Give the calibration of binary tasks and the spread of predictions of regression tasks."""
    calibration: Tree = {}
    predicted: Tree = {}
    for task in label_tasks(config.tasks):
        rows = _rows(histories, task, "test")
        for name, prediction in _predictions(answers, task.name).items():
            if name != "mean" and len(rows.truth):
                if task.kind == "binary":
                    found = comparison.calibration(rows, prediction)
                    calibration[task.name] = {**_tree(calibration, task.name), name: found}
                else:
                    spread = comparison.predicted_by_truth(rows, prediction)
                    predicted[task.name] = {**_tree(predicted, task.name), name: spread}
    return {"calibration": calibration, "predicted_by_truth": predicted}


def _tree(tree: Tree, name: str) -> Tree:
    found = tree.get(name, {})
    assert isinstance(found, dict)
    return found


def describe_protocol(
    config: Config, histories: Histories, items: ItemFacts, links: Links | None = None
) -> Tree:
    """Say how the figures were made, in the words that a reader needs to repeat them."""
    k = config.evaluate.k
    test = _relevance(config, histories, items, "test")
    held_out = histories.split == SPLITS.index("test")
    return {
        "data": config.data.source or os.path.basename(config.data.interactions.path),
        "users": len(histories),
        "items": len(items.train_count) - 2,
        "events": {
            name: int((histories.split == position).sum()) for position, name in enumerate(SPLITS)
        },
        **({"links": {name: len(links.of(name)) for name in SPLITS}} if links is not None else {}),
        "split": config.data.split.method,
        "seed": config.run.seed,
        "k": k,
        "test_users": int((test.count > 0).sum()),
        "test_events_of_unknown_items": int((held_out & (histories.item_index < 2)).sum()),
        "tasks": {task.name: task.kind for task in config.tasks},
        "ranking": f"{_CANDIDATES[config.evaluate.candidates]}, items of the user's history left "
        "out, ties by position",
        "history": "the user's events before the split: train for validation, train and "
        "validation for test",
        "relevance": "binary; mean over users with a held-out item; ideal gain over min(|R|, k)",
        "baselines": "tuned on validation, then fitted on train and validation for test",
        "intervals": f"percentile bootstrap, 95 %, {config.evaluate.bootstrap_samples} resamples "
        "of users, the same for every method",
        "lower_is_better": sorted(LOWER_IS_BETTER),
    }


_CANDIDATES: dict[Candidates, str] = {
    "all": "the whole catalogue",
    "cold": "the items that have no event before the split",
}
_WARM: dict[Candidates, str] = {"all": "", "cold": ", that others had met"}


def _relevance(config: Config, histories: Histories, items: ItemFacts, split: str) -> Relevance:
    return baselines.relevant_items(
        histories, split, len(items.train_count), config.evaluate.candidates
    )


def _rows(histories: Histories, task: RegressionTask | BinaryTask, split: str) -> Rows:
    rows = baselines.labelled_rows(histories, task.name, split)
    truth = histories.labels[task.name][rows].astype(np.float64)
    return Rows(histories.event_user[rows], truth, task.kind)


def _lists(answers: Mapping[str, Answers]) -> dict[str, NDArray[np.int32]]:
    return {name: a.lists for name, a in answers.items() if a.lists is not None}


def _friends(answers: Mapping[str, Answers]) -> dict[str, NDArray[np.int32]]:
    return {name: a.friends for name, a in answers.items() if a.friends is not None}


def _links_each(links: Links) -> NDArray[np.int64]:
    """Count each user's links, in the numbers of lists of friends: (V + 2,)."""
    return np.concatenate([[0, 0], np.diff(links.adjacency().indptr)]).astype(np.int64)


def _predictions(answers: Mapping[str, Answers], task: str) -> dict[str, Floats]:
    return {name: a.predictions[task] for name, a in answers.items() if task in a.predictions}
