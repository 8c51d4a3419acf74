"""How good lists are for users whom a model has never seen, beside one that was trained on them.

From a folder of tables come the requests, each with a user's training events, and what test holds;
a `Recommender` answers, and of two models' answers comes the tree that a report has. Nothing here
trains anything or decides who is left out.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtrec import intervals, metrics
from mtrec.comparison import differences_json
from mtrec.config import Config
from mtrec.data.histories import SPLITS
from mtrec.recommender import Recommender

TRAINED_ON = "trained_on"
"""Name of the model that knows the users, among the methods."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """What a user asks, and what would be right.

    Attributes:
        request: as for `Recommender.recommend`: id, training events as history, what is in
            validation as `exclude`.
        wanted: ids of the items that test holds and that the user had not met.
    """

    request: Json
    wanted: frozenset[str]


def read_questions(config: Config) -> dict[str, Question]:
    """Give the question of each user with a wanted item, from the tables that a run reads.

    Args:
        config: names the interactions, a CSV file with a column of splits, and their columns.
    """
    table = config.data.interactions
    assert table.split is not None, "the data brings its split along"
    numbers = {
        name: column.source or name
        for name, column in table.columns.items()
        if column.kind == "number"
    }
    parts: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    path = Path(config.data.root or "") / table.path
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            parts[row[table.user_id]][row[table.split]].append(row)
    train, validation, test = SPLITS
    questions = {}
    for user, rows in parts.items():
        history: list[Json] = []
        for row in rows[train]:
            event: Json = {"item_id": row[table.item_id]}
            event |= {name: float(row[source]) for name, source in numbers.items()}
            if table.timestamp is not None:
                event["timestamp"] = float(row[table.timestamp])
            history.append(event)
        met, hidden, wanted = (
            {row[table.item_id] for row in rows[split]} for split in (train, validation, test)
        )
        if wanted - met - hidden:
            request: Json = {"user_id": user, "history": history, "k": config.evaluate.k}
            request["exclude"] = sorted(hidden)
            questions[user] = Question(request, frozenset(wanted - met - hidden))
    return questions


def ndcg_of_lists(
    recommender: Recommender, questions: Mapping[str, Question], k: int
) -> dict[str, float]:
    """Ask a model, and give each user's NDCG@k.

    Args:
        recommender: the model.
        questions: user -> question.
        k: length of the lists.
    """
    asked = list(questions.values())
    answers = recommender.recommend([question.request for question in asked])
    hits = np.zeros((len(asked), k), bool)
    for row, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        listed = [str(entry["item_id"]) for entry in answer["recommendations"]]
        hits[row, : len(listed)] = [item in question.wanted for item in listed]
    count = np.array([len(question.wanted) for question in asked], np.int64)
    return dict(zip(questions, metrics.ndcg(hits, count).tolist(), strict=True))


def compare(
    unseen: Sequence[Mapping[str, float]],
    seen: Mapping[str, float],
    *,
    task: str,
    k: int,
    samples: int,
    seed: int,
) -> Json:
    """Give the tree of a report: the models that had not seen the users beside the one that had.

    The users are drawn anew together for both, so the difference is paired.

    Args:
        unseen: of each fold, user -> NDCG@k.
        seen: user -> NDCG@k; users of no fold do not count.
        task: name of the retrieval task.
        k: length of the lists.
        samples: bootstrap samples of users.
        seed: decides the draws.
    """
    cold = {user: value for fold in unseen for user, value in fold.items()}
    users = sorted(cold)
    drawn = intervals.bootstrap(
        {
            name: intervals.mean_over_users(np.array([values[user] for user in users]))
            for name, values in (("cold", cold), (TRAINED_ON, seen))
        },
        num_users=len(users),
        samples=samples,
        seed=seed,
    )
    metric = f"ndcg@{k}"
    ours, theirs = drawn["cold"], drawn[TRAINED_ON]
    return {
        "model": {task: {metric: ours.value}},
        "baselines": {TRAINED_ON: {task: {metric: theirs.value}}},
        "differences": {TRAINED_ON: {task: differences_json({metric: ours}, {metric: theirs})}},
        "tuned": {},
    }
