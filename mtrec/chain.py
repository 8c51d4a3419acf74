"""The chain that `mtrec run` walks: all stages, folds as runs of their own, and twins.

`stages` says which artifact comes from which and what is still valid.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence

from mtrec import artifacts, storage
from mtrec.config import Config
from mtrec.dataconfig import KFoldSplit
from mtrec.errors import ConfigError
from mtrec.paths import Paths
from mtrec.runlock import hold_folder
from mtrec.runlog import event
from mtrec.stages import STAGES, Chain, Outcome, explained

logger = logging.getLogger("mtrec.chain")


def run(
    config: Config,
    *,
    address: str | None = None,
    stages: Sequence[str] | None = None,
    twins: bool = False,
) -> Outcome:
    """Run the chain, skipping what is done and valid.

    With `data.split.method: k_fold` every fold is a run below `folds/` and the report joins theirs;
    nothing is scored.

    Args:
        config: the run.
        address: address of a Ray cluster; default: the `RAY_ADDRESS` variable, else a local one.
        stages: run only these, in the chain's order; the artifacts that they read must be there.
        twins: also train each task alone and compare, below `twins/`; whether joint training harms
            a task is for the caller to ask (`harm.check_harm`).

    Raises:
        ConfigError: an unknown stage, or a run that has no twins.
        DataError: the input data cannot be used.
        ArtifactError: an artifact is damaged, a stage that was left out has not been run, another
            run has the workdir, or the storage fails.
    """
    wanted = STAGES if stages is None else stages
    for stage in wanted:
        if stage not in STAGES:
            raise ConfigError(f'unknown stage "{stage}"; the stages are {", ".join(STAGES)}')
    chosen = tuple(stage for stage in STAGES if stage in wanted)
    if not chosen:
        raise ConfigError(f"no stage to run; the stages are {', '.join(STAGES)}")
    if twins:
        from mtrec.harm import twinned_tasks

        if "evaluate" not in chosen:
            raise ConfigError("twins are compared after evaluate, which is not among the stages")
        twinned_tasks(config)
    split = config.data.split
    if isinstance(split, KFoldSplit) and split.fold is None:
        with hold_folder(config.run.workdir):
            return _run_folds(config, address, chosen, split.folds)
    chain = Chain(config, address)
    with hold_folder(config.run.workdir) as check_lock:
        chain.write_config()
        chain.tidy()
        for stage in STAGES:
            check_lock()
            with explained(stage, config.run.workdir):
                chain.walk(stage, stage in chosen)
            if stage == chosen[-1]:
                break
        if twins:
            _run_twins(chain, check_lock)
    outcome = chain.outcome
    if not outcome.done:
        event(logger, "run.nothing_to_do", up_to_date=",".join(outcome.skipped))
    return outcome


def _run_folds(config: Config, address: str | None, stages: Sequence[str], folds: int) -> Outcome:
    """Run each fold's chain in a folder of its own, several at once if CPUs allow; join reports."""
    from mtrec.rayrun import call_in_tasks, cluster_cpus, connect, local_cpus

    chosen = [stage for stage in stages if stage != "score"]
    if not chosen:
        raise ConfigError(
            "cross-validation leaves no model to score with: data.split.method is k_fold\n"
            "choose another split to ship a model, or one fold (data.split.fold)"
        )
    if "score" in stages:
        event(logger, "score.left_out", why="cross-validation leaves no model to score with")
    whole = Chain(config, address)
    whole.write_config()
    storage.remove_abandoned(whole.paths.workdir)
    runs = [_fold_config(config, fold) for fold in range(folds)]
    begin = time.monotonic()
    # What one fold occupies: its training workers, as much for the data, and two drivers.
    each = 2 * max(1, config.train.num_workers) + 2
    at_once = local_cpus(config.ray) // each
    if address or os.environ.get("RAY_ADDRESS"):
        connect(config.ray, address)
        at_once = int(cluster_cpus()) // each
    outcomes: Iterator[Outcome]
    if at_once > 1:
        connect(config.ray, address)
        outcomes = call_in_tasks(run, [{"config": c, "stages": chosen} for c in runs], at_once)
    else:
        outcomes = (run(fold, address=address, stages=chosen) for fold in runs)
    outcome = whole.outcome
    for fold, done in enumerate(outcomes):
        event(logger, "fold.done", fold=fold + 1, of=folds, seconds=round(sum(done.done.values())))
        for stage, seconds in done.done.items():
            outcome.done[stage] = outcome.done.get(stage, 0.0) + seconds
    outcome.skipped.extend(stage for stage in chosen if stage not in outcome.done)
    if "evaluate" in chosen:
        _join_reports(whole.paths, [Paths(fold.run.workdir).report for fold in runs])
    event(logger, "folds.done", folds=folds, seconds=round(time.monotonic() - begin, 1))
    return outcome


def _fold_config(config: Config, fold: int) -> Config:
    """Give one fold's run; all folds share the text vectors.

    Places are absolute: another process, with another working folder, may run it.
    """
    places = {
        name: storage.absolute(storage.join(place, "folds", str(fold)))
        for name in ("workdir", "storage")
        if (place := getattr(config.run, name)) is not None
    }
    store = storage.absolute(config.text.store or Paths(config.run.workdir).embeddings)
    split = config.data.split.model_copy(update={"fold": fold})
    return config.model_copy(
        update={
            "run": config.run.model_copy(update=places),
            "text": config.text.model_copy(update={"store": store}),
            "data": config.data.model_copy(update={"split": split}),
        }
    )


def _join_reports(paths: Paths, reports: Sequence[str]) -> None:
    from mtrec.folds import join_reports
    from mtrec.report_page import render_html

    parents = {
        f"fold {n}": artifacts.read_manifest(report, "report").id
        for n, report in enumerate(reports)
    }
    key = storage.hash_values("folds", parents)
    artifacts.remove_leftovers(paths.report)
    manifest = artifacts.find_manifest(paths.report)
    if manifest is not None and manifest.key == key:
        artifacts.verify(paths.report, manifest)
        return
    trees = [storage.read_json(storage.join(report, "report.json")) for report in reports]
    joined = join_reports(trees)
    with artifacts.write_artifact(paths.report, kind="report", key=key, parents=parents) as writer:
        storage.write_json(writer.join("report.json"), joined)
        storage.write_bytes(writer.join("report.html"), render_html(joined).encode("utf-8"))
        writer.details = {"model": joined["model"]}


def _run_twins(joint: Chain, check_lock: Callable[[], None]) -> None:
    """Train a twin of each task on the joint run's dataset and text vectors, and compare."""
    from mtrec.harm import twinned_tasks
    from mtrec.twins import twin_config

    twins: dict[str, Chain] = {}
    for task in twinned_tasks(joint.config):
        check_lock()
        event(logger, "twin.start", task=task.name)
        config = twin_config(joint.config, task)
        twin = Chain(config, joint.address, shared=joint.paths.workdir)
        twin.ids.update({name: joint.ids[name] for name in ("dataset", "embeddings")})
        twin.write_config()
        twin.tidy()
        with explained(f"the twin of {task.name}", config.run.workdir):
            twin.walk("train")
        twins[task.name] = twin
        if "train" in twin.outcome.done:
            joint.outcome.done[f"twin of {task.name}"] = twin.outcome.done["train"]
        else:
            joint.outcome.skipped.append(f"twin of {task.name}")
    check_lock()
    with explained("twins", joint.config.run.workdir):
        joint.compare(twins)
