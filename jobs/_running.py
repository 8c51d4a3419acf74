"""Run a row of the quality table under a seed, or read what that gave before.

One runner for each kind of row. What is finished has a result file with a hash of its
configuration; what was interrupted goes on where the chain was.
"""

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _cold_users import compare, ndcg_of_lists, read_questions
from _rows import Row
from _seeds import report_of_twins

import mtrec
from mtrec import storage
from mtrec.config import Config
from mtrec.configfile import load_config
from mtrec.data import draws
from mtrec.dataconfig import KFoldSplit
from mtrec.errors import DataError
from mtrec.paths import Paths
from mtrec.recommender import Recommender
from mtrec.stages import SPEED
from mtrec.twins import compare_bundles
from mtrec.versions import find_bundle

CONFIGS = Path(__file__).resolve().parent / "configs" / "quality"
STAGES = ("prepare", "embed", "train", "evaluate")
ON_VALIDATION = ('train.refit="no"', "train.num_workers=0")
"""Overrides of runs whose validation split is what they are judged by."""
NUM_FOLDS = 10
"""Folds of users in C2."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What holds for all rows."""

    data: Path | None
    out: Path
    seeds: int | None
    text: str | None
    overrides: tuple[str, ...]
    folds: int = NUM_FOLDS
    results: Path | None = None


class DataAbsentError(DataError):
    """A row's data is not there, which costs this row only."""


def run_seed(row: Row, seed: int, options: Options) -> Json:
    """Give the result of a row under a seed: read if it is there, else run.

    Returns:
        `report` (the tree of `report.json`) and `seconds` (stage -> wall time; stages that were
        interrupted and resumed are absent).

    Raises:
        DataAbsentError: the row's data is not there.
    """
    home = home_of(row, seed, options)
    config = configure(row, seed, options, home=home, root=home / "data")
    path, result, is_done = _open_result(home / "result.json", "quality", config, options)
    if is_done:
        say(f"{row.name}, seed {seed}: done before")
        return result
    config = configure(row, seed, options, home=home, root=_tables(row, seed, options, home))
    _run_stages(config, STAGES, f"{row.name}, seed {seed}", path, result)
    result["report"] = storage.read_json(
        storage.join(Paths(config.run.workdir).report, "report.json")
    )
    _write_result(path, result, options)
    return result


def run_twins(row: Row, seed: int, options: Options) -> Json:
    """Give the result of a row's single-task twins under a seed, beside the joint run's own.

    Returns:
        `report` (of `report_of_twins`) and `seconds`, which is empty: twins are trained beside a
        row that has its own time, and often by more than one command.

    Raises:
        DataAbsentError: the row's data is not there.
    """
    home = home_of(row, seed, options)
    config = configure(row, seed, options, home=home, root=home / "data")
    path, result, is_done = _open_result(home / "twins.json", "twins", config, options)
    if is_done:
        say(f"{row.name}, seed {seed}: done before")
        return result
    config = configure(row, seed, options, home=home, root=_tables(row, seed, options, home))
    mtrec.run(config, stages=STAGES, twins=True)
    result["report"] = report_of_twins(
        storage.read_json(storage.join(Paths(config.run.workdir).twins, "twins.json"))
    )
    _write_result(path, result, options)
    return result


def run_cold_users(row: Row, seed: int, options: Options) -> Json:
    """Give the result of models that have not seen the users who ask, fold by fold of the users.

    Each fold, and the model of everybody, has a folder and a `result.json` of its own.

    Returns:
        `report` (of `_cold_users.compare`), `seconds` (`train`: of all models) and, if not all
        folds were run, `partly`, which says so.

    Raises:
        DataAbsentError: the row's data is not there.
    """
    home = home_of(row, seed, options)

    def ndcg_of(part: str) -> Json:
        place = home / part
        config = configure(row, seed, options, home=place, root=place / "data")
        path, result, is_done = _open_result(
            place / "result.json", f"cold users, {part}", config, options
        )
        if is_done:
            say(f"{row.name}, seed {seed}: {part} done before")
            return result
        # Whoever asks, the question is of everybody's tables.
        everybody = _tables(row, seed, options, home / "everybody")
        questions = read_questions(configure(row, seed, options, home=place, root=everybody))
        root = everybody
        if part != "everybody":
            left_out = users_of_fold(everybody, seed, int(part.removeprefix("fold-")))
            questions = {user: asked for user, asked in questions.items() if user in left_out}
            root = _tables(row, seed, options, place, without=left_out)
        config = configure(row, seed, options, home=place, root=root)
        _run_stages(config, STAGES[:-1], f"{row.name}, seed {seed}, {part}", path, result)
        recommender = Recommender.load(Paths(config.run.workdir).bundles)
        result["report"] = ndcg_of_lists(recommender, questions, config.evaluate.k)
        _write_result(path, result, options)
        return result

    parts = [ndcg_of(part) for part in ("everybody", *(f"fold-{n}" for n in range(options.folds)))]
    config = configure(row, seed, options, home=home, root=home / "data")
    seen, *unseen = (part["report"] for part in parts)
    found: Json = {
        "report": compare(
            unseen,
            seen,
            task=next(task.name for task in config.tasks if task.kind == "retrieval"),
            k=config.evaluate.k,
            samples=config.evaluate.bootstrap_samples,
            seed=seed,
        ),
        "seconds": {},
    }
    if all("train" in part["seconds"] for part in parts):
        found["seconds"]["train"] = sum(part["seconds"]["train"] for part in parts)
    if options.folds < NUM_FOLDS:
        found["partly"] = [f"first {options.folds} of {NUM_FOLDS} folds"]
    return found


def run_parts(row: Row, seed: int, options: Options) -> Json:
    """Give what the parts of a row's model do on validation, each against the run without it.

    The whole model and each exchange have a run of their own below `parts/`.

    Returns:
        `report`: as of `report_of_twins`, with a baseline for each part.

    Raises:
        DataAbsentError: the row's data is not there.
    """
    home = home_of(row, seed, options) / "parts"

    def config_of(name: str, overrides: tuple[str, ...], root: Path) -> Config:
        changed = replace(options, overrides=(*options.overrides, *ON_VALIDATION, *overrides))
        config = configure(row, seed, changed, home=home / name, root=root)
        if not isinstance(config.data.split, KFoldSplit):
            return config
        split = config.data.split.model_copy(update={"fold": 0})
        return config.model_copy(update={"data": config.data.model_copy(update={"split": split})})

    def trained(name: str, overrides: tuple[str, ...]) -> Config:
        config = config_of(name, overrides, _tables(row, seed, options, home))
        done = mtrec.run(config, stages=STAGES[:-1]).done
        if done:
            say(f"{row.name}, seed {seed}: {name} {sum(done.values()):.0f} s")
        return config

    whole = config_of("whole", (), home / "data")
    kind = f"parts of {storage.hash_values(_without_places(whole))}"
    found: Json = {"model": {}, "baselines": {}, "differences": {}, "tuned": {}}
    for part in row.parts:
        name = part.name.replace(" ", "-")
        config = config_of(name, part.overrides, home / "data")
        path, result, is_done = _open_result(home / f"{name}.json", kind, config, options)
        if is_done:
            say(f"{row.name}, seed {seed}: {part.name} done before")
        else:
            joint, other = trained("whole", ()), trained(name, part.overrides)
            paths, bundle = Paths(joint.run.workdir), find_bundle(Paths(other.run.workdir).bundles)
            tree = compare_bundles(
                joint,
                dataset=paths.dataset,
                bundle=find_bundle(paths.bundles),
                others={task.name: (other, bundle) for task in joint.tasks},
                split="validation",
            )
            result["report"] = report_of_twins(tree, part.name)
            _write_result(path, result, options)
        for section, values in result["report"].items():
            found[section].update(values)
    return {"report": found}


RUNNERS: dict[str, Callable[[Row, int, Options], Json]] = {
    "report": run_seed,
    "twins": run_twins,
    "cold_users": run_cold_users,
    "parts": run_parts,
}


def users_of_fold(folder: Path, seed: int, fold: int) -> frozenset[str]:
    """Give the ids of a fold of those users who have events in a folder of tables."""
    with (folder / "interactions.csv").open(encoding="utf-8", newline="") as file:
        users = sorted({row["user_id"] for row in csv.DictReader(file)})
    folds = draws.draw_folds(len(users), seed=seed, folds=NUM_FOLDS)
    return frozenset(np.array(users, object)[folds == fold])


def home_of(row: Row, seed: int, options: Options) -> Path:
    """Give the folder of a row's configuration under a seed."""
    name = row.config if options.text is None else f"{row.config}-{options.text}"
    return options.out / name / f"seed-{seed}"


def _open_result(
    place: Path, kind: str, config: Config, options: Options
) -> tuple[str, Json, bool]:
    """Give a result's path, what it holds, and whether that is all of it.

    Without the file, here or among the results that are given, or if it is of another
    configuration, it holds nothing yet.
    """
    path, key = str(place), storage.hash_values(kind, _without_places(config))
    result: Json = {"key": key, "seconds": {}, "report": None}
    shared = _shared_path(path, options)
    for known in (path, shared):
        if known is None or not storage.exists(known):
            continue
        before: Json = storage.read_json(known)
        if before["key"] == key and before["report"] is not None:
            if shared is not None and not storage.exists(shared):
                _write_result(path, before, options)
            return path, before, True
        if known == path:
            # Of a stage that is up to date the time is still that of its artifact.
            result["seconds"] = before["seconds"]
            result["unfinished"] = before.get("unfinished", [])
    return path, result, False


def _write_result(path: str, result: Json, options: Options) -> None:
    """Write a result that is complete, and add it to the results that are given."""
    storage.write_json(path, result)
    shared = _shared_path(path, options)
    if shared is not None:
        # Curves are long, and no table shows them.
        report = {name: part for name, part in result["report"].items() if name != "curves"}
        storage.write_json(shared, {**result, "report": report})


def _shared_path(path: str, options: Options) -> str | None:
    """Give the path among the results that are given; None: none are."""
    if options.results is None:
        return None
    return str(options.results.resolve() / Path(path).relative_to(options.out))


def _tables(
    row: Row, seed: int, options: Options, home: Path, without: frozenset[str] = frozenset()
) -> Path:
    """Give the folder of the tables that a row reads, written below `home` if need be.

    Raises:
        DataAbsentError: the row's data is not there.
    """
    try:
        source = row.find(options.data)
    except DataError as error:
        # One line, whatever the error says about remedies.
        raise DataAbsentError(" ".join(str(error).split())) from error
    if row.convert is None:
        return source
    left_out = {"without": without} if without else {}
    row.convert(source, home / "data", seed, **left_out)
    return home / "data"


def _run_stages(config: Config, stages: Sequence[str], name: str, path: str, result: Json) -> None:
    """Run stages one by one, writing the seconds of those that had to be done into the result.

    Of a stage that an earlier command began, the time of the whole is not known: it has none.
    """
    unfinished: list[str] = result.setdefault("unfinished", [])
    for stage in stages:
        begin = time.monotonic()
        is_resumed = stage in unfinished
        if not is_resumed:
            unfinished.append(stage)
            storage.write_json(path, result)
        outcome = mtrec.run(config, stages=(stage,))
        unfinished.remove(stage)
        if stage in outcome.done and is_resumed:
            result["seconds"].pop(stage, None)
        elif stage in outcome.done:
            result["seconds"][stage] = round(outcome.done[stage], 1)
        # Before the next stage: an interruption must not cost what was measured.
        storage.write_json(path, result)
        say(f"{name}: {stage} {time.monotonic() - begin:.0f} s")
    del result["unfinished"]


def configure(row: Row, seed: int, options: Options, *, home: Path, root: Path) -> Config:
    """Give a row's configuration for a seed, with everything it writes below `home` or shared."""
    text = [] if options.text is None else [f"text.encoder={options.text}"]
    config = load_config(CONFIGS / f"{row.config}.yaml", [*text, *options.overrides])
    store = str(options.out / "embeddings")
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"seed": seed, "workdir": str(home / "run")}),
            "data": config.data.model_copy(update={"root": str(root)}),
            "text": config.text.model_copy(update={"store": store}),
        }
    )


def _without_places(config: Config) -> Json:
    """Give what of a configuration decides a result: not where things lie, not how it is served.

    Terms of speed count as their defaults: two workers share each batch and give what one does.
    What is absent is left out: a term that a later version can add changes no result of before.
    """
    usual = {}
    for name, terms in SPEED.items():
        section = getattr(config, name)
        fields = type(section).model_fields
        # A result of twins holds what the gate says.
        usual[name] = section.model_copy(
            update={term: fields[term].default for term in terms - {"max_harm"}}
        )
    tree: Json = config.model_copy(update=usual).model_dump(
        mode="json", exclude={"serve", "ray"}, exclude_none=True
    )
    for section, name in (("run", "workdir"), ("data", "root"), ("text", "store")):
        tree[section].pop(name, None)
    return tree


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)
