"""The train stage: Ray Train around `model.fit`, from a dataset to a bundle.

Every worker loads the training arrays and takes its share of each global batch, so the result does
not depend on their number and every worker takes equally many steps. A checkpoint is kept each
epoch; a killed run with the same key goes on from the last one. The weights of the best validation
epoch become the bundle.
"""

import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from mtrec import storage
from mtrec.bundle import EncoderInfo, ItemArrays, save_bundle
from mtrec.config import Config, parse_config
from mtrec.data.features import Features, FeatureSizes, FeatureTransform
from mtrec.data.histories import SPLITS, Histories
from mtrec.errors import ArtifactError, DataError, MtrecError
from mtrec.model.fit import TrainingData, TrainState, UserInputs, start_state, train_epoch
from mtrec.model.network import ModelSizes, TowerSizes, build_model
from mtrec.model.towers import FeatureInputs
from mtrec.model.validation import monitored, validate
from mtrec.rayrun import cluster_cpus, cluster_gpus
from mtrec.runlog import configure_logging, event
from mtrec.text.store import EmbeddingStore, store_path
from mtrec.userstore import read_parquet

logger = logging.getLogger("mtrec.train")
_STATE = "state.pt"


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
    num_workers = config.train.num_workers
    settings = {
        "config": config.model_dump(mode="json"),
        "dataset": _absolute(dataset),
        "embeddings": _absolute(embeddings),
    }
    use_gpu = config.train.use_gpu == "yes" or (
        config.train.use_gpu == "auto" and cluster_gpus() >= num_workers
    )
    name, up = monitored(config)
    # Half a core each at most leaves room for Ray's own work on a small machine.
    cpus = min(1.0, cluster_cpus() / (2 * num_workers))
    threads = max(1, int((os.cpu_count() or 1) / num_workers)) if not use_gpu else 1
    trainer = TorchTrainer(
        _worker,
        train_loop_config={**settings, "threads": threads},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=_resources(cpus, use_gpu)
        ),
        run_config=RunConfig(
            name=f"train-{key[:16]}",
            storage_path=_absolute(checkpoints),
            failure_config=FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=2,
                checkpoint_score_attribute="score",
                checkpoint_score_order="max",
            ),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise _cause(error) from error
    state, score = _best_state(result)
    event(logger, "train.best", epoch=state["epoch"], **{name: score if up else -score})
    return _export(
        config, state, dataset=dataset, embeddings=embeddings, bundles=bundles, key=key,
        parents=parents,
    )  # fmt: skip


def load_training_data(
    config: Config, *, dataset: str, embeddings: str, device: torch.device | str = "cpu"
) -> tuple[TrainingData, Histories]:
    """Load what fitting reads, and the validation events: (data, held out).

    Raises:
        ArtifactError: a part is missing or does not fit the others.
    """
    transform = FeatureTransform.from_json(
        storage.read_json(storage.join(dataset, "transform.json"))
    )
    items = read_parquet(storage.join(dataset, "items.parquet"))
    users = read_parquet(storage.join(dataset, "users.parquet"))
    histories = _load_histories(dataset)
    train = histories.select(histories.split == SPLITS.index("train"))
    held_out = histories.select(histories.split == SPLITS.index("validation"))
    store = _open_store(config, embeddings)
    num_items = items.num_rows + 2
    item_text = _text_rows(store, items.column("text"), shift=2)
    texts, (profile, behaviour) = _distinct_texts(
        store, [users.column("text"), users.column("behaviour_text")]
    )
    order = _user_order(users, histories)
    counts = np.bincount(train.item_index, minlength=num_items)
    width = store.dim if store is not None else 0
    sizes = ModelSizes(
        num_items=num_items,
        items=_tower_sizes(transform.item_sizes, width if item_text.any() else 0),
        users=_tower_sizes(transform.user_sizes, width if config_tells_users(config) else 0),
        event_numbers=list(transform.event_scaling),
        event_categories=dict(transform.event_categories),
        context_numbers=list(transform.context_numbers),
        context_categories=list(transform.context_categories),
        labels=_label_scales(config, transform),
    )
    item_inputs = _feature_inputs(transform.item_features(items), item_text, shift=2)
    if not sizes.items.text_width:
        item_inputs = _without_text(item_inputs)
    user_features = _feature_inputs(
        transform.user_features(users), np.zeros((users.num_rows, 0), np.float32), shift=0
    ).rows(torch.from_numpy(order))
    cut = users.column("behaviour_cut").to_numpy().astype(np.int64)
    cut = np.where(behaviour > 0, cut, 0)[order]
    data = TrainingData(
        train=train,
        cut=_training_cut(histories, cut),
        items=item_inputs.to(device),
        trained=torch.from_numpy((counts > 0).astype(np.float32)).to(device),
        users=UserInputs(
            features=user_features.to(device),
            texts=torch.from_numpy(texts[:, : sizes.users.text_width]).to(device),
            profile=torch.from_numpy(profile[order]).to(device),
            behaviour=torch.from_numpy(behaviour[order]).to(device),
        ),
        sizes=sizes,
        scaling=dict(transform.event_scaling),
    )
    return data, held_out


def config_tells_users(config: Config) -> bool:
    """Tell whether users have text, so that the user tower has a place for it."""
    return config.text.user_template is not None or config.text.behaviour is not None


def _worker(settings: dict[str, Any]) -> None:
    """Fit on one Ray Train worker; all workers run this together."""
    configure_logging()
    torch.set_num_threads(settings["threads"])
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    config = parse_config(settings["config"])
    device = get_device()
    data, held_out = load_training_data(
        config, dataset=settings["dataset"], embeddings=settings["embeddings"], device=device
    )
    state = start_state(config, data, device)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = torch.load(os.path.join(folder, _STATE), map_location=device, weights_only=True)
        state.load_state_dict(saved)
        event(logger, "train.resume", epoch=state.epoch)
    if num_workers > 1:
        state.wrapped = prepare_model(
            state.objective, move_to_device=False, parallel_strategy_kwargs={}
        )
    name, up = monitored(config)
    while not _finished(state, config):
        begin = time.monotonic()
        losses = train_epoch(state, config, data, rank=rank, num_workers=num_workers)
        weights = state.export_weights()
        kept = {key: value.detach().clone() for key, value in state.model.state_dict().items()}
        state.model.load_state_dict(weights)
        values = validate(state.model, config, data, held_out, rank=rank, num_workers=num_workers)
        state.model.load_state_dict(kept)
        # Without validation events the last epoch is the one that ships.
        score = values.get(name, float(state.epoch)) * (1.0 if up or name not in values else -1.0)
        if math.isnan(state.best) or score > state.best:
            state.best, state.best_epoch = score, state.epoch
        state.history.append(
            {
                "epoch": state.epoch,
                "loss": sum(losses[task] * state.factors[task] for task in losses),
                **{f"loss/{task}": value for task, value in losses.items()},
                **{f"validation/{metric}": value for metric, value in values.items()},
                "seconds": round(time.monotonic() - begin, 3),
            }
        )
        _report(state, weights, score, rank)


def _finished(state: TrainState, config: Config) -> bool:
    stale = state.best_epoch > 0 and state.epoch - state.best_epoch >= config.train.patience
    return state.epoch >= config.train.epochs or stale


def _report(state: TrainState, weights: dict[str, torch.Tensor], score: float, rank: int) -> None:
    """Hand Ray Train this epoch's metrics and, from the first worker, its checkpoint."""
    metrics = {"score": score, "epoch": state.epoch, "loss": state.history[-1]["loss"]}
    if rank != 0:
        ray.train.report(metrics)
        return
    event(logger, "train.epoch", **state.history[-1])
    with tempfile.TemporaryDirectory() as folder:
        torch.save({**state.state_dict(), "export": weights}, os.path.join(folder, _STATE))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _best_state(result: ray.train.Result) -> tuple[dict[str, Any], float]:
    """Give the saved state of the best epoch, with the whole history of the last."""
    ranked = [
        (metrics["score"], -metrics["epoch"], kept)
        for kept, metrics in result.best_checkpoints or []
    ]
    if not ranked:
        raise ArtifactError(
            "training ended without a checkpoint\nremove the run's checkpoints/ and run again"
        )
    score, _, best = max(ranked, key=lambda entry: entry[:2])
    newest = min(ranked, key=lambda entry: entry[1])[2]
    states = []
    for checkpoint in (best, newest):
        with checkpoint.as_directory() as folder:
            states.append(torch.load(os.path.join(folder, _STATE), weights_only=True))
    chosen: dict[str, Any] = {**states[0], "history": states[1]["history"]}
    return chosen, score


def _export(
    config: Config,
    state: dict[str, Any],
    *,
    dataset: str,
    embeddings: str,
    bundles: str,
    key: str,
    parents: Mapping[str, str],
) -> str:
    """Make a bundle of a saved state."""
    data, _ = load_training_data(config, dataset=dataset, embeddings=embeddings)
    model = build_model(config.model, config.tasks, data.sizes)
    model.load_state_dict(state["export"])
    model.eval()
    with torch.no_grad():
        vectors = model.encode_items(data.items, data.trained)
    store = _open_store(config, embeddings)
    users = read_parquet(storage.join(dataset, "users.parquet"))
    history = state["history"]
    chosen: dict[str, Any] = next(
        (entry for entry in history if entry["epoch"] == state["epoch"]), {}
    )
    return save_bundle(
        bundles,
        config=config,
        model=model,
        sizes=data.sizes,
        transform=FeatureTransform.from_json(
            storage.read_json(storage.join(dataset, "transform.json"))
        ),
        dataset=dataset,
        vectors=ItemArrays(
            content=vectors.content.numpy(),
            collaborative=vectors.collaborative.numpy(),
            bias=vectors.bias.numpy(),
            text=data.items.text.numpy() if data.sizes.items.text_width else None,
        ),
        user_text=(
            _text_rows(store, users.column("text"), shift=0)
            if store is not None and data.sizes.users.text_width
            else None
        ),
        encoder=(
            EncoderInfo(store.spec.id, store.spec.name, store.dim) if store is not None else None
        ),
        metrics={
            "validation": {
                name.removeprefix("validation/"): value
                for name, value in chosen.items()
                if name.startswith("validation/")
            },
            "epoch": state["epoch"],
            "history": history,
        },
        fitted_on=["train"],
        key=key,
        parents=parents,
    )


def _open_store(config: Config, embeddings: str) -> EmbeddingStore | None:
    """Open the run's vectors; None for a run without text."""
    manifest = storage.read_manifest(embeddings, "embeddings")
    encoder = manifest.details["encoder"]
    if encoder is None:
        return None
    return EmbeddingStore(store_path(config.text, embeddings), encoder["id"])


def _load_histories(dataset: str) -> Histories:
    folder = storage.join(dataset, "histories")
    parts = [
        read_parquet(storage.join(folder, name))
        for name in storage.list_files(folder)
        if name.endswith(".parquet")
    ]
    if not parts:
        raise DataError("the dataset has no users: found no file in dataset/histories")
    return Histories.from_table(pa.concat_tables(parts))


def _user_order(users: pa.Table, histories: Histories) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Give for each history the row of its user in the users table."""
    found = pa.compute.index_in(
        pa.array(histories.user_ids.tolist(), pa.string()),
        value_set=users.column("user_id").combine_chunks(),
    )
    assert found.null_count == 0, "every user with events is in the users table"
    return np.asarray(found.to_numpy(zero_copy_only=False)).astype(np.int64)


def _training_cut(histories: Histories, cut: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Turn cuts in whole histories into cuts in training events: those told are the first ones."""
    position = np.arange(histories.num_events) - np.repeat(
        histories.offsets[:-1], np.diff(histories.offsets)
    )
    told = (histories.split == 0) & (position < np.repeat(cut, np.diff(histories.offsets)))
    return np.bincount(histories.event_user[told], minlength=len(histories)).astype(np.int64)


def _text_rows(
    store: EmbeddingStore | None, texts: pa.ChunkedArray, *, shift: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Give (R + shift, W) vectors of a text column, zeros where there is no text."""
    values = texts.to_pylist()
    if store is None:
        return np.zeros((len(values) + shift, 0), np.float32)
    rows = np.zeros((len(values) + shift, store.dim), np.float32)
    rows[shift:] = store.lookup([value or "" for value in values])
    return rows


def _distinct_texts(
    store: EmbeddingStore | None, columns: list[pa.ChunkedArray]
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], list[np.ndarray[Any, Any]]]:
    """Give distinct vectors, row 0 zeros, and for each column the row of each of its texts."""
    row_of: dict[str, int] = {"": 0}
    rows = [
        np.array(
            [row_of.setdefault(value or "", len(row_of)) for value in column.to_pylist()], np.int64
        )
        for column in columns
    ]
    if store is None:
        return np.zeros((1, 0), np.float32), [np.zeros_like(row) for row in rows]
    return store.lookup(list(row_of)), rows


def _feature_inputs(
    features: Features, text: np.ndarray[Any, np.dtype[np.float32]], *, shift: int
) -> FeatureInputs:
    """Turn features into tensors, with `shift` rows of zeros (padding, unknown) in front."""

    def tensor(values: np.ndarray[Any, Any], dtype: type) -> torch.Tensor:
        padded = np.zeros((len(values) + shift, *values.shape[1:]), dtype)
        padded[shift:] = values
        return torch.from_numpy(padded)

    return FeatureInputs(
        numbers=tensor(features.numbers, np.float32),
        categories={name: tensor(part, np.int64) for name, part in features.categories.items()},
        multi={name: tensor(part, np.int64) for name, part in features.multi.items()},
        text=torch.from_numpy(text),
        has_text=torch.from_numpy(text.any(axis=1).astype(np.float32)),
    )


def _without_text(inputs: FeatureInputs) -> FeatureInputs:
    return FeatureInputs(
        inputs.numbers, inputs.categories, inputs.multi, inputs.text[:, :0], inputs.has_text * 0.0
    )


def _tower_sizes(sizes: FeatureSizes, text_width: int) -> TowerSizes:
    return TowerSizes(sizes.numbers, dict(sizes.categories), dict(sizes.multi), text_width)


def _label_scales(config: Config, transform: FeatureTransform) -> dict[str, tuple[float, float]]:
    """Give each regression task the scale in which its column enters the model."""
    return {
        task.name: transform.event_scaling[task.label.strip()]
        for task in config.tasks
        if task.kind == "regression"
    }


def _resources(cpus: float, use_gpu: bool) -> dict[str, float]:
    return {"CPU": cpus, "GPU": 1.0} if use_gpu else {"CPU": cpus}


def _absolute(path: str) -> str:
    """Ray Train workers change their folder: relative paths would point elsewhere there."""
    return os.path.abspath(path) if storage.is_local(path) else path


def _cause(error: BaseException) -> BaseException:
    """Find the error of ours inside what Ray Train raised."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MtrecError):
            return seen
        for inner in getattr(seen, "worker_failures", {}).values():
            found = _cause(inner)
            if isinstance(found, MtrecError):
                return found
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error
