"""The train stage: Ray Train around `model.fit`, from a dataset to a bundle.

Every worker loads the training arrays and takes its share of each global batch, so the result does
not depend on their number and every worker takes equally many steps. A checkpoint is kept each
epoch; a killed run with the same key goes on from the last one. The weights of the best validation
epoch become the bundle. Without workers (`train.num_workers: 0`) the driver does it all itself, in
Ray Train's local mode, and keeps no checkpoints.
"""

import io
import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from mtrec import storage
from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.errors import ArtifactError, ConfigError
from mtrec.export import export_bundle
from mtrec.model.fit import TrainState, start_state, train_epoch
from mtrec.model.loading import load_training_data
from mtrec.model.validation import monitored, validate
from mtrec.progress import follow
from mtrec.rayrun import (
    cluster_cpus,
    cluster_gpus,
    find_cause,
    largest_node_cpus,
    usable_cores,
)
from mtrec.runlog import configure_logging, event
from mtrec.text.store import store_path

logger = logging.getLogger("mtrec.train")
_STATE = "state.pt"
# Where Ray Train lists the checkpoints of a run.
_LIST = "checkpoint_manager_snapshot.json"


def train(
    config: Config,
    *,
    dataset: str,
    embeddings: str,
    checkpoints: str,
    bundles: str,
    key: str,
    parents: Mapping[str, str],
) -> str:
    """Fit the model and give the version of the bundle that it became.

    Args:
        config: the run.
        dataset: folder or URI of the dataset artifact.
        embeddings: folder or URI of the embeddings artifact.
        checkpoints: folder or URI for Ray Train.
        bundles: folder or URI that receives the bundle.
        key: hash of the work; a run with the same key goes on where it was.
        parents: ids of the artifacts that it is made from.

    Raises:
        DataError: nothing to learn from, or a loss that is not finite.
    """
    # Ray's default makes every epoch's report wait up to two seconds for the controller's poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Workers run in folders of their own.
    store = storage.absolute(store_path(config.text, embeddings))
    text = config.text.model_copy(update={"store": store})
    settings: dict[str, Any] = {
        "config": config.model_copy(update={"text": text}).model_dump(mode="json"),
        "dataset": storage.absolute(dataset),
        "embeddings": storage.absolute(embeddings),
        "fitted_on": ["train"],
        "epochs": config.train.epochs,
    }
    place = storage.absolute(checkpoints)
    state = _fit(config, settings, storage_path=place, run_name=f"train-{key[:16]}")
    chosen = state["history"][state["epoch"] - 1]
    event(
        logger,
        "train.best",
        epoch=state["epoch"],
        **{key: value for key, value in chosen.items() if key.startswith("validation/")},
    )
    if config.train.refit == "validation":
        settings |= {"fitted_on": ["train", "validation"], "epochs": state["epoch"]}
        again = _fit(config, settings, storage_path=place, run_name=f"refit-{key[:16]}")
        # The curves stay those of the fit that was validated.
        state |= {"export": again["export"], "validated": state["export"]}
    return export_bundle(
        config,
        state,
        fitted_on=settings["fitted_on"],
        dataset=dataset,
        embeddings=embeddings,
        bundles=bundles,
        key=key,
        parents=parents,
    )


def _fit(
    config: Config, settings: dict[str, Any], *, storage_path: str, run_name: str
) -> dict[str, Any]:
    """Fit with Ray Train, or go on where a run of that name was; give the best epoch's state."""
    is_here = config.train.num_workers == 0
    name, _ = monitored(config)
    shown = ["loss", f"validation/{name}"]
    with follow(logger, "train.epoch", total=settings["epochs"], shown=shown, here=is_here) as show:
        if is_here:
            return _fit_here(config, {**settings, "show": show})
        _drop_torn_list(storage.join(storage_path, run_name))
        trainer = _build_trainer(
            config,
            settings={**settings, "show": show},
            storage_path=storage_path,
            run_name=run_name,
        )
        try:
            with _interruptible():
                result = trainer.fit()
        except Exception as error:
            raise find_cause(error) from error
    return _best_state(result)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C mean what it means elsewhere, in the body and after it.

    Ray Train has a handler of its own, which it leaves behind, and which ends the process as if all
    were well.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        # Only the main thread has handlers; None is one that Python cannot put back.
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _fit_here(config: Config, settings: dict[str, Any]) -> dict[str, Any]:
    """Fit in this process; give the best epoch's state, with the whole history of the last."""
    use_gpu = torch.cuda.is_available() and config.train.use_gpu != "no"
    if config.train.use_gpu == "yes" and not use_gpu:
        raise ConfigError(
            "train.use_gpu is yes, but this process sees no GPU\n"
            "with train.num_workers 1 or more, training goes to the cluster's GPUs"
        )
    kept: dict[str, dict[str, Any]] = {}
    before = torch.get_num_threads()
    try:
        TorchTrainer(
            _worker,
            train_loop_config={
                **settings,
                "cores": usable_cores(),
                "device": torch.device("cuda" if use_gpu else "cpu"),
                "kept": kept,
            },
            scaling_config=ScalingConfig(num_workers=0),
        ).fit()
    finally:
        torch.set_num_threads(before)
    return {**kept["best"], "history": kept["last"]["history"]}


def _drop_torn_list(folder: str) -> None:
    """Start a run anew if Ray Train was killed while it wrote its list of checkpoints.

    It writes the list in place and would refuse half a one for ever.
    """
    try:
        storage.read_json(storage.join(folder, _LIST))
    except FileNotFoundError:
        return
    except ValueError:
        event(logger, "train.restart", reason=f"{_LIST} is damaged")
        storage.remove(folder)


def _build_trainer(
    config: Config, *, settings: dict[str, Any], storage_path: str, run_name: str
) -> TorchTrainer:
    """Build the Ray Train job: workers, checkpoints, restarts."""
    local = storage.is_local(storage_path)
    system, inner = storage.filesystem(storage_path)
    num_workers = config.train.num_workers
    use_gpu = config.train.use_gpu == "yes" or (
        config.train.use_gpu == "auto" and cluster_gpus() >= num_workers
    )
    # Half of the CPUs at most: on a small machine Ray's own work needs the others.
    cpus = min(1.0, cluster_cpus() / (2 * num_workers))
    return TorchTrainer(
        _worker,
        train_loop_config={**settings, "cores": largest_node_cpus()},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1.0} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name=run_name,
            storage_path=storage_path if local else inner,
            # Ray would open a URI anew in each process, and cannot join to one with a query.
            storage_filesystem=None if local else system,
            failure_config=FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=2,
                checkpoint_score_attribute="score",
                checkpoint_score_order="max",
            ),
        ),
    )


def _worker(settings: dict[str, Any]) -> None:
    """Fit on one Ray Train worker; all workers run this together."""
    is_here = "kept" in settings
    if not is_here:
        configure_logging()
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    config = parse_config(settings["config"])
    device = settings["device"] if is_here else get_device()
    torch.set_num_threads(_num_threads(device, settings["cores"], context.get_local_world_size()))
    data, held_out = load_training_data(
        config,
        dataset=settings["dataset"],
        embeddings=settings["embeddings"],
        fitted_on=settings["fitted_on"],
        device=device,
    )
    state = start_state(config, data, device)
    transform = storage.hash_file(storage.join(settings["dataset"], "transform.json"))[0]
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = _load(os.path.join(folder, _STATE))
        _check_transform(saved, transform)
        state.load_state_dict(saved)
        event(logger, "train.resume", epoch=state.epoch)
    # Every step passes the whole catalogue; its texts stay what they are.
    data = replace(data, items=state.model.items.content.whiten(data.items))
    if num_workers > 1:
        state.wrapped = prepare_model(
            state.objective, move_to_device=False, parallel_strategy_kwargs={}
        )
    name, up = monitored(config)
    while not _finished(state, settings["epochs"], config.train.patience):
        begin = time.monotonic()
        losses = train_epoch(state, config, data, rank=rank, num_workers=num_workers)
        exported = state.export_weights()
        kept = {key: value.detach().clone() for key, value in state.model.state_dict().items()}
        state.model.load_state_dict(exported)
        values = validate(state.model, config, data, held_out, rank=rank, num_workers=num_workers)
        state.model.load_state_dict(kept)
        if name not in values and len(held_out.item_index) and state.epoch == 1 and rank == 0:
            logger.warning(
                "%s has no value on validation, such as an AUC of labels that are all alike: the "
                "last epoch ships; set train.monitor to another value",
                name,
            )
        # Without the value, or validation events at all, the last epoch is the one that ships.
        score = values.get(name, float(state.epoch)) * (1.0 if up or name not in values else -1.0)
        if math.isnan(state.best) or score > state.best:
            state.best, state.best_epoch = score, state.epoch
        weights = state.objective.balance.weights()
        state.history.append(
            {
                "epoch": state.epoch,
                "step": state.step,
                "loss": state.joint_loss(losses),
                # 1 is a constant predictor, whatever the task.
                **{f"loss/{task}": losses[task] / state.constants[task] for task in losses},
                **{f"weight/{task}": weights[task] for task in losses},
                **{f"validation/{metric}": value for metric, value in values.items()},
                "seconds": round(time.monotonic() - begin, 3),
            }
        )
        beside = {"export": exported, "transform": transform}
        if is_here:
            _keep(state, beside, settings["kept"])
        else:
            _report(state, beside, score, rank)
        if rank == 0:
            settings["show"](state.history[-1])


def _num_threads(device: torch.device, cores: int, num_workers: int) -> int:
    """Share the cores that a machine and its Ray have over the workers there; a GPU needs one."""
    if device.type != "cpu":
        return 1
    return max(1, min(cores, usable_cores()) // num_workers)


def _load(path: str) -> dict[str, Any]:
    """Load a checkpoint into main memory, where the state of torch's RNG has to be.

    It may come from a GPU, and the driver have none.
    """
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def _check_transform(saved: Mapping[str, Any], transform: str) -> None:
    """Refuse a checkpoint whose model read other numbers and positions than the dataset has now.

    Raises:
        ArtifactError: the hash of its transform.json is another one.
    """
    if saved["transform"] != transform:
        raise ArtifactError(
            "the checkpoint was made with another transform.json than the dataset has now\n"
            "remove the run's checkpoints/ and train again"
        )


def _finished(state: TrainState, epochs: int, patience: int) -> bool:
    stale = state.best_epoch > 0 and state.epoch - state.best_epoch >= patience
    return state.epoch >= epochs or stale


def _report(state: TrainState, beside: dict[str, Any], score: float, rank: int) -> None:
    """Hand Ray Train this epoch's metrics and, from the first worker, its checkpoint."""
    metrics = {"score": score, "epoch": state.epoch, "loss": state.history[-1]["loss"]}
    if rank != 0:
        ray.train.report(metrics)
        return
    # Ray Train's working folder, in Ray's session: a worker that Ray kills while the storage hangs
    # takes nothing back, and would leave this in the machine's temporary folder for ever.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        # Through a file of ours: torch's own says neither "disk full" nor where.
        with open(os.path.join(folder, _STATE), "wb") as file:
            torch.save({**state.state_dict(), **beside}, file)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _keep(state: TrainState, beside: dict[str, Any], kept: dict[str, dict[str, Any]]) -> None:
    """Keep this epoch's state in memory, beside the best one."""
    # Through bytes, as a checkpoint is: a state's tensors are those that the next step changes.
    stream = io.BytesIO()
    torch.save({**state.state_dict(), **beside}, stream)
    stream.seek(0)
    kept["last"] = torch.load(stream, weights_only=True, map_location="cpu")
    if state.best_epoch == state.epoch:
        kept["best"] = kept["last"]


def _best_state(result: ray.train.Result) -> dict[str, Any]:
    """Give the saved state of the best epoch, with the whole history of the last."""
    ranked = [
        (metrics["score"], -metrics["epoch"], kept)
        for kept, metrics in result.best_checkpoints or []
    ]
    if not ranked or result.checkpoint is None:
        raise ArtifactError(
            "training ended without a checkpoint\nremove the run's checkpoints/ and run again"
        )
    best = max(ranked, key=lambda entry: entry[:2])[2]
    states = []
    for checkpoint in (best, result.checkpoint):
        with checkpoint.as_directory() as folder:
            states.append(_load(os.path.join(folder, _STATE)))
    chosen: dict[str, Any] = {**states[0], "history": states[1]["history"]}
    return chosen
