"""Tasks beside their twins: figures against a loop over resamples, and what the gate lets pass."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_bundle import small_config

from mtrec.comparison import ItemFacts
from mtrec.config import Config
from mtrec.data.histories import Histories
from mtrec.dataconfig import KFoldSplit
from mtrec.errors import ConfigError, GateError
from mtrec.harm import check_harm, compare_twins, is_harm, twinned_tasks, twins_table
from mtrec.report import Answers

USERS, ITEMS, K, SAMPLES = 30, 12, 3, 100
METRICS = {"click": f"ndcg@{K}", "stars": "rmse", "like": "auc"}


def _config(**evaluate: object) -> Config:
    config = small_config()
    values = {"k": K, "bootstrap_samples": SAMPLES, **evaluate}
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=values)})


def _histories() -> Histories:
    """Give each user a training event of item 2 and one or two test events of the others."""
    rng = np.random.default_rng(0)
    tests = [
        rng.choice(np.arange(3, ITEMS + 2), rng.integers(1, 3), replace=False) for _ in range(USERS)
    ]
    items = np.concatenate([[2, *test] for test in tests]).astype(np.int32)
    counts = np.array([1 + len(test) for test in tests])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    split = np.full(len(items), 2, np.int8)
    split[offsets[:-1]] = 0
    stars = rng.integers(1, 6, len(items)).astype(np.float32)
    stars[offsets[1]] = np.nan
    like = np.where(np.isnan(stars), np.nan, stars >= 4).astype(np.float32)
    return Histories(
        user_ids=np.array([f"u{at}" for at in range(USERS)], object),
        offsets=offsets,
        item_index=items,
        timestamp=np.full(len(items), np.nan),
        split=split,
        labels={"stars": stars, "like": like},
    )


def _answers(histories: Histories, seed: int) -> Answers:
    rng = np.random.default_rng(seed)
    rows = (histories.split > 0) & np.isfinite(histories.labels["stars"])
    lists = np.stack([rng.permutation(np.arange(3, ITEMS + 2))[:K] for _ in range(USERS)])
    return Answers(
        lists.astype(np.int32),
        {
            "stars": rng.uniform(1, 5, int(rows.sum())),
            "like": rng.uniform(0, 1, int(rows.sum())),
        },
    )


def _tree(config: Config, histories: Histories, split: str = "test") -> Any:
    train_count = np.zeros(ITEMS + 2, np.int64)
    train_count[2] = USERS
    return compare_twins(
        config,
        histories=histories,
        items=ItemFacts(train_count, None),
        joint=_answers(histories, 1),
        twins={name: _answers(histories, seed) for seed, name in enumerate(METRICS, 2)},
        metrics=METRICS,
        split=split,
    )


def _ndcg(histories: Histories, answers: Answers, user: int) -> float:
    start, stop = histories.offsets[user] + 1, histories.offsets[user + 1]
    wanted = set(histories.item_index[start:stop].tolist())
    assert answers.lists is not None
    gains = [
        1 / np.log2(place + 2)
        for place, item in enumerate(answers.lists[user].tolist())
        if item in wanted
    ]
    return float(sum(gains) / sum(1 / np.log2(place + 2) for place in range(len(wanted))))


def test_tasks_are_compared_on_the_split_that_is_asked_for() -> None:
    config, histories = _config(), _histories()
    moved = replace(histories, split=np.where(histories.split == 2, 1, 0).astype(np.int8))

    assert _tree(config, moved, "validation")["tasks"] == _tree(config, histories)["tasks"]


def test_a_ranking_task_is_compared_as_a_loop_over_resamples_does() -> None:
    config, histories = _config(), _histories()
    entry = _tree(config, histories)["tasks"]["click"]
    joint, twin = (
        np.array([_ndcg(histories, _answers(histories, seed), user) for user in range(USERS)])
        for seed in (1, 2)
    )
    gaps, changes = [], []
    for sample in range(SAMPLES):
        rng = np.random.default_rng([config.run.seed, sample])
        drawn = rng.integers(0, USERS, USERS)
        gaps.append(joint[drawn].mean() - twin[drawn].mean())
        changes.append(joint[drawn].mean() / twin[drawn].mean() - 1)
    assert entry["joint"] == pytest.approx(joint.mean())
    assert entry["twin"] == pytest.approx(twin.mean())
    assert entry["difference"] == pytest.approx(joint.mean() - twin.mean())
    assert entry["relative"] == pytest.approx(joint.mean() / twin.mean() - 1)
    assert entry["interval"] == pytest.approx(np.percentile(gaps, (2.5, 97.5)).tolist())
    assert entry["relative_interval"] == pytest.approx(np.percentile(changes, (2.5, 97.5)).tolist())
    assert entry["metric"] == "ndcg@3"


def test_a_rating_task_is_compared_over_the_rows_of_the_users_drawn() -> None:
    config, histories = _config(), _histories()
    entry = _tree(config, histories)["tasks"]["stars"]
    rows = np.flatnonzero((histories.split == 2) & np.isfinite(histories.labels["stars"]))
    truth, user = histories.labels["stars"][rows], histories.event_user[rows]
    joint, twin = ((_answers(histories, seed).predictions["stars"] - truth) ** 2 for seed in (1, 3))
    users, changes = np.unique(user), []
    for sample in range(SAMPLES):
        rng = np.random.default_rng([config.run.seed, sample])
        drawn = users[rng.integers(0, len(users), len(users))]
        chosen = np.concatenate([np.flatnonzero(user == one) for one in drawn])
        changes.append(np.sqrt(joint[chosen].mean() / twin[chosen].mean()) - 1)
    assert entry["joint"] == pytest.approx(np.sqrt(joint.mean()))
    assert entry["relative_interval"] == pytest.approx(np.percentile(changes, (2.5, 97.5)).tolist())


def test_each_task_is_compared_with_its_own_twin() -> None:
    histories = _histories()
    tree = _tree(_config(), histories)
    assert list(tree["tasks"]) == ["click", "stars", "like"]
    rows = (histories.split == 2) & np.isfinite(histories.labels["like"])
    label = histories.labels["like"][rows]
    guess = _answers(histories, 4).predictions["like"]
    above = (guess[label > 0][:, None] > guess[label == 0][None, :]).mean()
    assert tree["tasks"]["like"]["twin"] == pytest.approx(above)


def test_a_metric_that_is_undefined_on_test_is_a_note() -> None:
    histories = _histories()
    liked = np.ones_like(histories.labels["like"])
    labels = {
        **histories.labels,
        "like": np.where(np.isnan(histories.labels["like"]), np.nan, liked),
    }
    tree = _tree(_config(), replace(histories, labels=labels))
    assert list(tree["tasks"]) == ["click", "stars"]
    assert tree["notes"] == ["like: auc is undefined on test, nothing was compared"]


# ---- the gate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "relative", "interval", "harm"),
    [
        ("ndcg@10", -0.05, [-0.08, -0.01], True),
        ("ndcg@10", -0.05, [-0.11, 0.01], False),  # not significant
        ("ndcg@10", -0.015, [-0.02, -0.01], False),  # significant, but within what is allowed
        ("ndcg@10", 0.05, [0.01, 0.08], False),
        ("rmse", 0.05, [0.01, 0.08], True),
        ("rmse", 0.05, [-0.01, 0.11], False),
        ("rmse", -0.05, [-0.08, -0.01], False),
        ("logloss", 0.021, [0.001, 0.04], True),
        ("auc", -0.02, [-0.03, -0.01], False),  # exactly what is allowed
    ],
)
def test_harm_is_a_loss_that_is_significant_and_above_what_is_allowed(
    metric: str, relative: float, interval: list[float], harm: bool
) -> None:
    entry = {"relative": relative, "relative_interval": interval}
    assert is_harm(entry, metric=metric, max_harm=0.02) is harm


def test_without_a_relative_change_nothing_is_known_to_be_lost() -> None:
    assert not is_harm({"joint": 0.0, "twin": 0.0}, metric="ndcg@10", max_harm=0.0)


def judged(*harmed: str) -> dict[str, Any]:
    """Give a comparison of two tasks in which some are harmed."""
    rating = {"joint": 1.021, "twin": 0.9712, "relative": 0.0513, "relative_interval": [0.03, 0.07]}
    click = {"joint": 0.11, "twin": 0.1, "relative": 0.1, "relative_interval": [-0.02, 0.2]}
    return {
        "protocol": {
            "data": "log.csv",
            "users": 30,
            "items": 12,
            "events": {"train": 30, "validation": 0, "test": 45},
            "split": "random",
            "seed": 0,
            "max_harm": 0.02,
            "lower_is_better": ["rmse"],
        },
        "tasks": {
            "click": {
                "kind": "retrieval",
                "metric": "ndcg@10",
                **click,
                "harm": "click" in harmed,
            },
            "rating": {
                "kind": "regression",
                "metric": "rmse",
                **rating,
                "joint_interval": [0.99, 1.05],
                "harm": "rating" in harmed,
            },
        },
        "notes": ["aloud"],
    }


def test_a_harmed_task_fails_the_gate_with_figures_and_a_remedy() -> None:
    with pytest.raises(GateError) as raised:
        check_harm(judged("rating"))
    what, remedy = str(raised.value).splitlines()
    assert what == (
        "joint training harms rating (rmse 1.0210 together, 0.9712 alone: +5.1 % [+3.0, +7.0]); "
        "evaluate.max_harm allows a loss of 2 %"
    )
    assert "weights of the other tasks" in remedy
    assert "{kind: ple}" in remedy
    assert raised.value.exit_code == 1


def test_all_harmed_tasks_are_named() -> None:
    with pytest.raises(GateError, match=r"harms click \(.*\) and rating \("):
        check_harm(judged("rating", "click"))


def test_experts_are_no_remedy_where_retrieval_alone_is_harmed() -> None:
    with pytest.raises(GateError) as raised:
        check_harm(judged("click"))
    assert str(raised.value).splitlines()[1] == (
        "lower the weights of the other tasks, or raise evaluate.max_harm"
    )


def test_without_harm_the_gate_lets_pass() -> None:
    check_harm(judged())


def test_the_table_has_a_line_for_each_task_and_says_what_is_harmed() -> None:
    lines = twins_table(judged("rating")).splitlines()
    assert " ".join(lines[1].split()) == "click ndcg@10 0.1100 0.1000 +10.0 % [-2.0, +20.0]"
    assert lines[2].endswith("+5.1 % [+3.0, +7.0]  harm")
    assert lines[3:] == ["note: aloud"]


# ---- which tasks --------------------------------------------------------------------------------


def test_every_task_with_a_loss_has_a_twin() -> None:
    config = small_config()
    silent = config.tasks[1].model_copy(update={"weight": 0.0})
    config = config.model_copy(update={"tasks": [config.tasks[0], silent, config.tasks[2]]})
    assert [task.name for task in twinned_tasks(config)] == ["click", "like"]


def test_a_single_task_has_no_twin() -> None:
    config = small_config()
    with pytest.raises(ConfigError, match="weight above 0: click; expected two or more"):
        twinned_tasks(config.model_copy(update={"tasks": config.tasks[:1]}))


def test_twins_of_all_folds_are_refused_and_of_one_are_not() -> None:
    config = small_config()

    def folds(fold: int | None) -> Config:
        split = KFoldSplit(method="k_fold", fold=fold)
        return config.model_copy(update={"data": config.data.model_copy(update={"split": split})})

    with pytest.raises(ConfigError, match=r"choose a fold \(--set data.split.fold=0\)"):
        twinned_tasks(folds(None))
    assert len(twinned_tasks(folds(0))) == 3


def test_a_task_whose_folder_would_be_the_comparison_is_refused() -> None:
    config = small_config()
    renamed = config.tasks[1].model_copy(update={"name": "report"})
    with pytest.raises(ConfigError, match='"report" is a folder of twins/'):
        twinned_tasks(config.model_copy(update={"tasks": [config.tasks[0], renamed]}))
