"""The evaluate stage: how good a bundle is on held-out events, beside tuned baselines.

Actors that hold a `Recommender` rank the whole catalogue for every user and predict the held-out
labels, from the events before the split; baselines are tuned on validation and fitted here, on the
driver. Each split is read once. What comes out is `report.json` and `report.html`. It never fits
or chooses anything on test, and refuses a split that the bundle was fitted on.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from mtrec import artifacts, baselines, storage
from mtrec.answers import RankUsers, as_evaluated, held_out_rows
from mtrec.artifacts import Manifest
from mtrec.bundle import Bundle, load_bundle
from mtrec.comparison import MODEL, Draws, ItemFacts, Tree
from mtrec.config import Config
from mtrec.data.dataset import history_files, read_histories, read_table
from mtrec.data.histories import SPLITS, Histories
from mtrec.data.links import Links
from mtrec.dial import measure_dial
from mtrec.errors import ArtifactError
from mtrec.friends import (
    SOCIAL_BASELINES,
    FriendGraph,
    baseline_lists,
    friend_relevance,
    metric_lists,
)
from mtrec.itemitem import interaction_matrix
from mtrec.metrics import Floats
from mtrec.model.loading import read_links
from mtrec.modelconfig import RegressionTask, label_tasks, social_task
from mtrec.popular import popularity
from mtrec.rayrun import cluster_cpus, cluster_gpus
from mtrec.recommender import Recommender
from mtrec.removal import removal_test
from mtrec.report import Answered, Answers, build_report
from mtrec.report_page import render_html
from mtrec.runlog import event
from mtrec.tuning import Tuned, Watch
from mtrec.versions import find_bundle

logger = logging.getLogger("mtrec.evaluate")
# Seconds between two lines about a baseline whose tuning takes long.
_SAY_S = 10.0
# Share of a table's rows from which on the report says that they were set aside.
_MANY_REJECTED = 0.05

HELD_OUT = SPLITS[1:]
"""The splits that are evaluated: validation, test."""


def evaluate(
    config: Config,
    *,
    dataset: str,
    bundle: str,
    path: str,
    key: str,
    parents: Mapping[str, str],
) -> Manifest:
    """Evaluate a bundle and its baselines, and write the report.

    Args:
        config: the run.
        dataset: folder or URI of the dataset artifact.
        bundle: a version's folder, or `bundles/`.
        path: folder or URI that receives the report.
        key: hash of the work.
        parents: ids of the artifacts that it is made from.

    Raises:
        ArtifactError: the bundle was fitted on test, or does not fit the dataset.
        DataError: the dataset has no users.
    """
    started = time.perf_counter()
    place = find_bundle(bundle)
    shipped = load_bundle(place)
    histories = read_histories(dataset)
    items = read_table(storage.join(dataset, "items.parquet"))
    _check(shipped, items, place)
    splits = [split for split in HELD_OUT if split not in shipped.fitted_on]
    answered, social = ask_model(
        config, shipped, dataset=dataset, histories=histories, splits=splits
    )
    event(logger, "evaluate.model", seconds=time.perf_counter() - started)
    tuned, notes = ask_baselines(
        config, histories, items.num_rows + 2, answered, text=shipped.vectors.text
    )
    links = None
    if social_task(config.tasks) is not None:
        users = read_table(storage.join(dataset, "users.parquet"))
        links = read_links(dataset, users)
        others = [name for name in SOCIAL_BASELINES if name in config.evaluate.baselines]
        ask_friends(config, shipped, histories, links, social, answered, others)
    if shipped.fitted_on != ["train"]:
        notes.append(f"the model was fitted on {', '.join(shipped.fitted_on)}")
    elif tuned:
        notes.append(
            "the model was fitted on train alone, tuned baselines on train and validation; "
            "train.refit: validation gives it both"
        )
    notes += _set_aside(storage.read_json(storage.join(dataset, "report.json")))
    report = build_report(
        config,
        histories=histories,
        items=_item_facts(shipped, items),
        answered=answered,
        tuned=tuned,
        notes=notes,
        links=links,
    )
    report["bundle"] = {
        "version": shipped.version,
        "fitted_on": shipped.fitted_on,
        "created": shipped.created,
        "encoder": shipped.encoder.name if shipped.encoder else None,
        "epoch": shipped.metrics.get("epoch"),
    }
    report["curves"] = shipped.metrics.get("history", [])
    report |= look_closer(config, shipped, histories, _item_facts(shipped, items))
    with artifacts.write_artifact(path, kind="report", key=key, parents=parents) as writer:
        storage.write_json(writer.join("report.json"), report)
        html = render_html(report)
        storage.write_bytes(writer.join("report.html"), html.encode("utf-8"))
        writer.details = {"version": shipped.version, "model": report["model"]}
    event(logger, "evaluate.done", seconds=time.perf_counter() - started, path=path)
    return artifacts.read_manifest(path, "report")


# ---- the model ----------------------------------------------------------------------------------


def ask_model(
    config: Config,
    shipped: Bundle,
    *,
    dataset: str,
    histories: Histories,
    splits: Sequence[str],
) -> tuple[Answered, dict[str, NDArray[np.float32]]]:
    """Let actors answer for all users and put the answers in the order of `histories`.

    Args:
        config: the run.
        shipped: the model.
        dataset: folder or URI of the dataset artifact.
        histories: all events of the dataset.
        splits: the splits to answer for.

    Returns:
        The answers; and, with a social task, split -> social vectors (U, D).
    """
    tasks = [task.name for task in label_tasks(config.tasks)]
    k, num_items = config.evaluate.k, shipped.sizes.num_items
    gpus = int(cluster_gpus())
    allowed = {
        split: baselines.candidate_items(histories, split, num_items, config.evaluate.candidates)
        for split in splits
    }
    parts = [storage.absolute(path) for path in history_files(dataset)]
    actors = min(config.score.actors, len(parts), gpus or max(1, int(cluster_cpus())))
    # Not by Ray Data's Parquet reader: for files whose names are known its processes are in vain.
    rows = (
        ray.data.from_items([{"part": path} for path in parts], override_num_blocks=len(parts))
        .map_batches(
            RankUsers,
            fn_constructor_args=(
                storage.absolute(shipped.path),
                config,
                allowed,
                {split: _popular_before(shipped, histories, split) for split in splits},
                "cuda" if gpus else "cpu",
            ),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=1 if gpus else None,
        )
        .iter_batches(batch_size=None, batch_format="pyarrow")
    )
    table = pa.concat_tables(list(rows))
    order = pa.compute.index_in(
        pa.array(histories.user_ids.tolist(), pa.string()), table.column("user_id")
    )
    assert order.null_count == 0, "every user has an answer"
    table = table.take(order).combine_chunks()
    answered: Answered = {}
    social: dict[str, NDArray[np.float32]] = {}
    for split in splits:
        if f"{split}_social" in table.column_names:
            flat = table.column(f"{split}_social").combine_chunks().flatten().to_numpy()
            social[split] = flat.reshape(len(histories), -1)
        flat = table.column(f"{split}_items").combine_chunks().flatten().to_numpy()
        held_out = held_out_rows(histories, split)
        predictions = {}
        for task in tasks:
            values = table.column(f"{split}_task_{task}").combine_chunks().flatten().to_numpy()
            labelled = baselines.labelled_rows(histories, task, split)
            predictions[task] = values[np.searchsorted(held_out, labelled)].astype(np.float64)
        lists = flat.astype(np.int32).reshape(len(histories), k)
        answered[split] = {MODEL: Answers(lists, predictions)}
    return answered, social


def _popular_before(shipped: Bundle, histories: Histories, split: str) -> NDArray[np.float64]:
    return popularity(histories.before(split), shipped.sizes.num_items, shipped.half_life)


def ask_friends(
    config: Config,
    shipped: Bundle,
    histories: Histories,
    links: Links,
    social: Mapping[str, NDArray[np.float32]],
    answered: Answered,
    others: Sequence[str] = (),
) -> None:
    """Add lists of friends, of the model and of social baselines, to `answered`.

    Graph and vectors are those of the links and events before the split.

    Args:
        config: the run.
        shipped: the model.
        histories: of the users who have events.
        links: all links, between all users of the dataset.
        social: split -> social vectors (U, D) of the users who have events.
        answered: split -> method -> answers.
        others: names of social baselines.
    """
    k = config.evaluate.k
    store = shipped.users
    everybody = store.user_ids(np.arange(len(store)))
    place = store.find(histories.user_ids.tolist())
    silent = np.setdiff1d(np.arange(len(store)), place)
    recommender = Recommender(as_evaluated(shipped, config, shipped.popular), threads=1)
    num_items = shipped.sizes.num_items
    for split, methods in answered.items():
        known = histories.before(split).with_users(everybody)
        vectors = np.zeros((len(store), social[split].shape[1]), np.float32)
        vectors[place] = social[split]
        if len(silent):
            vectors[silent] = recommender.social_vectors(known.rows(silent))
        graph = FriendGraph(links.before(split).adjacency(), interaction_matrix(known, num_items))
        asked = np.flatnonzero(friend_relevance(links.of(split)).count)
        found, _ = recommender.friend_scorer(graph, vectors).rank(
            vectors[asked], graph.links[asked], graph.items[asked], asked, k=k
        )
        lists = {MODEL: found}
        for name in others:
            lists[name] = baseline_lists(name, graph, asked, k=k)
        for name, places in lists.items():
            friends = metric_lists(places, asked, len(store))
            methods[name] = replace(methods.get(name, Answers(None, {})), friends=friends)


def look_closer(config: Config, shipped: Bundle, histories: Histories, items: ItemFacts) -> Tree:
    """Measure on samples of users what costs several answers each: test events are held out.

    Returns:
        `explanations` (`removal.removal_test`) and `dial` (`dial.measure_dial`), those that the
        configuration wants and that there are users for.
    """
    started = time.perf_counter()
    wanted, seed = config.evaluate, config.run.seed
    popular = _popular_before(shipped, histories, "test")
    recommender = Recommender(as_evaluated(shipped, config, popular))
    found: dict[str, Tree] = {}
    if wanted.explanations:
        known = histories.before("test")
        found["explanations"] = removal_test(
            recommender,
            known,
            num_users=wanted.explanations,
            seed=seed,
            watch=_teller("evaluate.explanations", of=wanted.explanations),
        )
        event(logger, "evaluate.explanations", seconds=time.perf_counter() - started)
    started = time.perf_counter()
    if wanted.dial:
        found["dial"] = measure_dial(
            recommender,
            histories,
            "test",
            items,
            settings=wanted.dial,
            k=wanted.k,
            num_users=wanted.dial_users,
            draws=Draws(wanted.bootstrap_samples, seed),
        )
        event(logger, "evaluate.dial", seconds=time.perf_counter() - started)
    return {name: tree for name, tree in found.items() if tree["users"]}


# ---- the baselines ------------------------------------------------------------------------------


def ask_baselines(
    config: Config,
    histories: Histories,
    num_items: int,
    answered: Answered,
    text: NDArray[np.floating] | None = None,
) -> tuple[dict[str, Tree], list[str]]:
    """Tune and fit every baseline of the configuration and add what it says to `answered`.

    Validation answers are those of the tuned baseline fitted on train, test answers those of the
    same settings fitted on train and validation.

    Args:
        config: the run.
        histories: all events.
        num_items: N.
        answered: split -> method -> answers; the baselines' are added.
        text: (N, W), the items' text vectors; None: they have none.

    Returns:
        What tuning chose, by baseline and task, and notes on what was left out.
    """
    tuned: dict[str, Tree] = {}
    notes: list[str] = []
    k, seed = config.evaluate.k, config.run.seed
    retrieval = next(task.name for task in config.tasks if task.kind == "retrieval")
    wanted = baselines.order_of(
        [name for name in config.evaluate.baselines if name not in SOCIAL_BASELINES]
    )
    for name in wanted:
        started = time.perf_counter()
        if name in baselines.DENSE_BASELINES and num_items - 2 > config.evaluate.max_dense_items:
            notes.append(
                f"{name} was left out: the catalogue has {num_items - 2} items, more than "
                f"evaluate.max_dense_items = {config.evaluate.max_dense_items}"
            )
            continue
        if name in baselines.TEXT_BASELINES and text is None:
            notes.append(f"{name} was left out: the items have no text")
            continue
        if name in baselines.RANKING_BASELINES:
            candidates = config.evaluate.candidates
            found, lists = baselines.tune_ranking(
                name,
                histories,
                num_items,
                k=k,
                seed=seed,
                candidates=candidates,
                text=text,
                watch=_teller("evaluate.tuning", name=name),
            )
            tuned[name] = {retrieval: _tuned_json(found, f"ndcg@{k}")}
            for split in answered:
                if split == "test":
                    known = histories.before(split)
                    model = baselines.fit_ranking(
                        name, known, num_items, seed=seed, settings=found.settings, text=text
                    )
                    allowed = baselines.candidate_items(histories, split, num_items, candidates)
                    lists = baselines.rank(model, known, num_items, k=k, allowed=allowed)
                answered[split][name] = Answers(lists, {})
        else:
            _ask_pointwise(config, name, histories, num_items, answered, tuned)
        event(logger, "evaluate.baseline", name=name, seconds=time.perf_counter() - started)
    if "recent_popularity" in wanted and not np.isfinite(histories.timestamp).any():
        notes.append("recent_popularity equals popularity: the interactions have no times")
    return tuned, notes


def _ask_pointwise(
    config: Config,
    name: str,
    histories: Histories,
    num_items: int,
    answered: Answered,
    tuned: dict[str, Tree],
) -> None:
    predictions: dict[str, dict[str, Floats]] = {split: {} for split in answered}
    chosen: Tree = {}
    for task in label_tasks(config.tasks):
        found = baselines.tune_pointwise(
            name,
            histories,
            task.name,
            num_items,
            kind=task.kind,
            watch=_teller("evaluate.tuning", name=name),
        )
        chosen[task.name] = _tuned_json(found, "logloss" if task.kind == "binary" else "rmse")
        bounds = (task.min, task.max) if isinstance(task, RegressionTask) else (0.0, 1.0)
        for split in answered:
            model = baselines.fit_pointwise(
                name, histories.before(split), task.name, num_items, settings=found.settings
            )
            rows = baselines.labelled_rows(histories, task.name, split)
            raw = model.predict(histories.event_user[rows], histories.item_index[rows])
            predictions[split][task.name] = baselines.clip_prediction(raw, task.kind, *bounds)
    if chosen:
        tuned[name] = chosen
        for split in answered:
            answered[split][name] = Answers(None, predictions[split])


def _teller(name: str, /, **values: object) -> Watch:
    """Give what logs now and then, as event `name` with these values, how much is done."""
    said = time.monotonic()

    def tell(done: int) -> None:
        nonlocal said
        if time.monotonic() - said > _SAY_S:
            said = time.monotonic()
            event(logger, name, **values, done=done)

    return tell


def _set_aside(report: Mapping[str, Any]) -> list[str]:
    """Name the tables of which `prepare` could not use a twentieth of the rows or more."""
    return [
        f"{name}: {counts['rejected']:,} of {counts['read']:,} rows were set aside; "
        "dataset/report.json counts the reasons, dataset/rejected has the rows"
        for name, counts in report["tables"].items()
        if counts["rejected"] >= max(1, _MANY_REJECTED * counts["read"])
    ]


def _tuned_json(found: Tuned, metric: str) -> Tree:
    tree: Tree = {"settings": dict(found.settings), "tried": found.tried}
    return {**tree, f"validation_{metric}": found.value} if np.isfinite(found.value) else tree


# ---- parts --------------------------------------------------------------------------------------


def _check(shipped: Bundle, items: pa.Table, place: str) -> None:
    if "test" in shipped.fitted_on:
        raise ArtifactError(
            f"the bundle at {place} was fitted on {', '.join(shipped.fitted_on)}: "
            "figures on test would be about events that it has seen\n"
            "evaluate a bundle that was fitted on training events only"
        )
    if shipped.items.column("item_id").to_pylist() != items.column("item_id").to_pylist():
        raise ArtifactError(
            f"the bundle at {place} has {shipped.items.num_rows} items that are not the dataset's "
            f"{items.num_rows}\nevaluate it on the dataset that it was trained from, or train anew"
        )


def _item_facts(shipped: Bundle, items: pa.Table) -> ItemFacts:
    train_count = np.zeros(items.num_rows + 2, np.int64)
    train_count[items.column("item_index").to_numpy()] = items.column("train_count").to_numpy()
    text = shipped.vectors.text
    return ItemFacts(train_count, shipped.vectors.content if text is None else text)
