"""The driver of `evaluate --twins`: single-task twins of a run, asked the same as the joint model.

A twin is the run itself in which one task alone has a loss. `chain.py` trains it; here all models
answer for the test split, and `harm.py` makes the comparison of it. Nothing is fitted or chosen
here, and whether a loss is tolerable is not decided here either.
"""

import logging
import time
from collections.abc import Mapping

import numpy as np

from mtrec import artifacts, storage
from mtrec.artifacts import Manifest
from mtrec.bundle import load_bundle
from mtrec.comparison import MODEL, ItemFacts, Tree
from mtrec.config import Config
from mtrec.data.dataset import read_histories, read_table
from mtrec.data.histories import Histories
from mtrec.data.links import Links
from mtrec.evaluate import ask_friends, ask_model
from mtrec.harm import compare_twins
from mtrec.model.loading import read_links
from mtrec.model.validation import PRIMARY
from mtrec.modelconfig import Task, social_task
from mtrec.report import Answers
from mtrec.runlog import event
from mtrec.twins_page import render_twins

logger = logging.getLogger("mtrec.twins")

_TERMS = {
    "item_item": ("retrieval",),
    "next_item": ("retrieval",),
    "ials": ("retrieval",),
    "recency": ("retrieval",),
    "factors": ("regression", "binary"),
}
"""Terms of `model` that are fitted beside the network, and the kinds of tasks that have them."""


def twin_config(config: Config, task: Task) -> Config:
    """Give the run in which this task alone has a loss, in a folder of its own below the run's.

    Everything else stays: data, seed, network, budget. Its own validation figure picks the epoch.
    Tasks without a loss are not blended into its lists either: they predict nothing. Terms that are
    fitted beside the network, and that this task's predictions do not have, are not fitted.
    """
    idle = [term for term, kinds in _TERMS.items() if task.kind not in kinds]
    places = {
        name: storage.join(place, "twins", task.name)
        for name in ("workdir", "storage")
        if (place := getattr(config.run, name)) is not None
    }
    silent = [
        other if other.name == task.name else other.model_copy(update={"weight": 0.0})
        for other in config.tasks
    ]
    monitor = f"{task.name}/{_metric(config, task)}"
    return config.model_copy(
        update={
            "run": config.run.model_copy(update=places),
            "tasks": silent,
            "model": config.model.model_copy(update=dict.fromkeys(idle)),
            "train": config.train.model_copy(update={"monitor": monitor}),
            "score": config.score.model_copy(update={"weights": {}}),
        }
    )


def evaluate_twins(
    config: Config,
    *,
    dataset: str,
    bundle: str,
    twins: Mapping[str, str],
    path: str,
    key: str,
    parents: Mapping[str, str],
) -> Manifest:
    """Compare the joint model with its twins on test, and write `twins.json` and `twins.html`.

    Args:
        config: the joint run.
        dataset: folder or URI of the dataset artifact.
        bundle: folder of the joint model's version.
        twins: task -> folder of its twin's version.
        path: folder or URI that receives the comparison.
        key: hash of the work.
        parents: ids of the artifacts that it is made from.
    """
    started = time.perf_counter()
    asked = {task: (twin_config(config, config.task(task)), p) for task, p in twins.items()}
    tree = compare_bundles(config, dataset=dataset, bundle=bundle, others=asked)
    tree["bundles"] = {
        name: {"version": storage.base_name(place), "epoch": _epoch(place)}
        for name, place in {
            "joint": bundle,
            **{f"twin of {t}": p for t, p in twins.items()},
        }.items()
    }
    with artifacts.write_artifact(path, kind="twins", key=key, parents=parents) as writer:
        storage.write_json(writer.join("twins.json"), tree)
        storage.write_bytes(writer.join("twins.html"), render_twins(tree).encode("utf-8"))
        writer.details = {"tasks": tree["tasks"]}
    event(logger, "twins.done", seconds=time.perf_counter() - started, path=path)
    return artifacts.read_manifest(path, "twins")


def compare_bundles(
    config: Config,
    *,
    dataset: str,
    bundle: str,
    others: Mapping[str, tuple[Config, str]],
    split: str = "test",
) -> Tree:
    """Give the tree of `harm.compare_twins` for bundles that know the same users and items.

    Args:
        config: the run of `bundle`.
        dataset: folder or URI of the dataset that all are asked about.
        bundle: folder of a version.
        others: task -> the run and the version's folder that it is compared with.
        split: which one they are asked about; none may be fitted on it.
    """
    histories = read_histories(dataset)
    items = read_table(storage.join(dataset, "items.parquet"))
    train_count = np.zeros(items.num_rows + 2, np.int64)
    train_count[items.column("item_index").to_numpy()] = items.column("train_count").to_numpy()
    links = None
    if social_task(config.tasks) is not None:
        links = read_links(dataset, read_table(storage.join(dataset, "users.parquet")))
    answers: dict[str, Answers] = {}
    for asked, place in ((config, bundle), *others.values()):
        if place not in answers:
            answers[place] = _ask(asked, dataset, place, histories, links, split)
    return compare_twins(
        config,
        links=links,
        histories=histories,
        items=ItemFacts(train_count, None),
        joint=answers[bundle],
        twins={task: answers[place] for task, (_, place) in others.items()},
        metrics={task: _metric(config, config.task(task)) for task in others},
        split=split,
    )


def _ask(
    config: Config,
    dataset: str,
    bundle: str,
    histories: Histories,
    links: Links | None,
    split: str,
) -> Answers:
    loaded = load_bundle(bundle)
    answered, social = ask_model(
        config, loaded, dataset=dataset, histories=histories, splits=[split]
    )
    if links is not None:
        ask_friends(config, loaded, histories, links, social, answered)
    return answered[split][MODEL]


def _metric(config: Config, task: Task) -> str:
    return PRIMARY[task.kind].format(k=config.evaluate.k)


def _epoch(bundle: str) -> object:
    return storage.read_json(storage.join(bundle, "metrics.json")).get("epoch")
