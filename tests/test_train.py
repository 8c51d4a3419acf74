import json
import os
import signal
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch
from processes import descendants
from ray.train import Checkpoint, Result

from mtrec import artifacts, storage
from mtrec.bundle import load_bundle
from mtrec.config import Config
from mtrec.errors import ArtifactError, ConfigError, DataError
from mtrec.model.fit import start_state, train_epoch
from mtrec.model.loading import load_training_data
from mtrec.train import (
    _best_state,
    _check_transform,
    _fit,
    _keep,
    _load,
    _num_threads,
    _report,
    train,
)

pytestmark = pytest.mark.ray


def _train(config: Config, folder: Path, key: str = "k" * 16) -> str:
    workdir = Path(config.run.workdir)
    return train(
        config,
        dataset=str(workdir / "dataset"),
        embeddings=str(workdir / "embeddings"),
        checkpoints=str(folder / "checkpoints"),
        bundles=str(folder / "bundles"),
        key=key,
        parents={},
    )


def _with(config: Config, **train_changes: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=train_changes)})


def test_the_bundle_holds_the_best_validation_epoch(planted_run) -> None:
    config, workdir = planted_run
    metrics = load_bundle(str(workdir / "bundles")).metrics
    task = next(task.name for task in config.tasks if task.kind == "retrieval")
    values = [epoch[f"validation/{task}/ndcg@10"] for epoch in metrics["history"]]
    assert len(values) == config.train.epochs
    assert metrics["epoch"] == 1 + max(range(len(values)), key=values.__getitem__)


def test_the_driver_alone_and_two_ray_workers_give_the_losses_of_one(
    planted_run, tmp_path: Path
) -> None:
    config, workdir = planted_run
    # Paths are the driver's: Ray Train's workers run in folders of their own.
    relative = config.text.model_copy(update={"store": os.path.relpath(workdir / "embeddings")})
    config = config.model_copy(update={"text": relative})
    threads = torch.get_num_threads()
    histories = []
    for num_workers in (1, 0, 2):
        folder = tmp_path / str(num_workers)
        _train(_with(config, num_workers=num_workers, epochs=2), folder)
        histories.append(load_bundle(str(folder / "bundles")).metrics["history"])
    for one, here, two in zip(*histories, strict=True):
        for name in one.keys() - {"seconds"}:
            assert here[name] == one[name]
            if name.startswith("loss"):
                assert two[name] == pytest.approx(one[name], rel=1e-4), name
    weights = [
        load_bundle(str(tmp_path / name / "bundles")).model.state_dict() for name in ("0", "1")
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert not (tmp_path / "0" / "checkpoints").exists()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("device", "cores", "usable", "num_workers", "threads"),
    [
        ("cpu", 16, 2, 1, 2),  # a container that may use two of the machine's cores
        ("cpu", 4, 16, 1, 4),  # a node that gives Ray four of its cores
        ("cpu", 16, 16, 3, 5),
        ("cpu", 1, 1, 2, 1),
        ("cuda", 16, 16, 1, 1),
    ],
)
def test_workers_share_the_cores_that_they_may_use(
    monkeypatch: pytest.MonkeyPatch, device, cores, usable, num_workers, threads
) -> None:
    monkeypatch.setattr("mtrec.train.usable_cores", lambda: usable)
    assert _num_threads(torch.device(device), cores, num_workers) == threads


def test_without_a_gpu_the_driver_says_what_to_do(
    planted_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = planted_run
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"sees no GPU\n.*num_workers 1"):
        _train(_with(config, num_workers=0, use_gpu="yes"), tmp_path)


def test_the_driver_keeps_the_best_state_and_the_last_as_they_were() -> None:
    weight = torch.zeros(2)
    kept: dict[str, dict[str, Any]] = {}
    for epoch, best in ((1, 1), (2, 2), (3, 2)):
        weight += 1.0
        saved = {"weight": weight, "epoch": epoch}
        state: Any = SimpleNamespace(epoch=epoch, best_epoch=best, state_dict=saved.copy)
        _keep(state, {"export": {"weight": 10.0 * weight}}, kept)
    weight += 1.0
    assert {name: saved["epoch"] for name, saved in kept.items()} == {"best": 2, "last": 3}
    assert kept["best"]["weight"].tolist() == [2.0, 2.0]
    assert kept["best"]["export"]["weight"].tolist() == [20.0, 20.0]
    assert kept["last"]["weight"].tolist() == [3.0, 3.0]


def test_a_refit_sees_validation_for_as_many_epochs_as_were_best(
    planted_run, tmp_path: Path
) -> None:
    config, workdir = planted_run
    config = _with(config, epochs=4, refit="validation")
    _train(config, tmp_path)
    bundle = load_bundle(str(tmp_path / "bundles"))
    assert bundle.fitted_on == ["train", "validation"]
    assert len(bundle.metrics["history"]) == 4
    data, held_out = load_training_data(
        config,
        dataset=str(workdir / "dataset"),
        embeddings=str(workdir / "embeddings"),
        fitted_on=["train", "validation"],
    )
    assert held_out.num_events == 0
    assert set(data.train.split) == {0, 1}
    state = start_state(config, data, torch.device("cpu"))
    for _ in range(bundle.metrics["epoch"]):
        train_epoch(state, config, data)
    expected = state.export_weights()["items.collaborative.weight"][2:]
    found = bundle.model.state_dict()["items.collaborative.weight"][2:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_two_workers_that_were_killed_go_on_as_one(planted_run, tmp_path: Path) -> None:
    config, _ = planted_run
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    _train(_with(config, epochs=8, num_workers=0), straight)
    killer = threading.Thread(target=_kill_worker_after_checkpoint, args=(killed / "checkpoints",))
    killer.start()
    with pytest.raises(Exception, match="died unexpectedly"):
        _train(_with(config, epochs=8, num_workers=2, max_failures=0), killed)
    killer.join()
    _train(_with(config, epochs=8, num_workers=1), killed)
    history = [
        load_bundle(str(folder / "bundles")).metrics["history"] for folder in (straight, killed)
    ]
    assert [entry["step"] for entry in history[1]] == [entry["step"] for entry in history[0]]
    for one, two in zip(*history, strict=True):
        for name in one.keys() - {"seconds"}:
            assert two[name] == pytest.approx(one[name], rel=1e-3), name


def test_a_checkpoint_of_another_transform_is_refused(planted_run) -> None:
    _, workdir = planted_run
    (newest, *_) = sorted((workdir / "checkpoints").glob("*/checkpoint_*/state.pt"), reverse=True)
    saved = torch.load(newest, weights_only=True)
    transform = workdir / "dataset" / "transform.json"
    _check_transform(saved, storage.hash_file(str(transform))[0])
    with pytest.raises(ArtifactError, match=r"another transform.json.*\n.*checkpoints"):
        _check_transform(saved, "0" * 64)


def _kill_worker_after_checkpoint(checkpoints: Path) -> None:
    """Wait for the first checkpoint, then `kill -9` one of the processes that train."""
    while not list(checkpoints.glob("*/checkpoint_*/state.pt")):
        time.sleep(0.05)
    workers = [pid for pid, title in descendants(os.getpid()).items() if "RayTrainWorker" in title]
    os.kill(workers[0], signal.SIGKILL)


def test_a_checkpoint_from_a_gpu_is_read_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"weight": torch.ones(2)}, tmp_path / "state.pt")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "state.pt", weights_only=True)
    assert _load(str(tmp_path / "state.pt"))["weight"].device == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_state_on_a_gpu_goes_on_from_a_checkpoint(planted_run, tmp_path: Path) -> None:
    config, workdir = planted_run
    place = {"dataset": str(workdir / "dataset"), "embeddings": str(workdir / "embeddings")}
    gpu = torch.device("cuda")
    data, _ = load_training_data(config, **place, device=gpu)
    straight = start_state(config, data, gpu)
    train_epoch(straight, config, data)
    torch.save(straight.state_dict(), tmp_path / "state.pt")
    again = start_state(config, data, gpu)
    again.load_state_dict(_load(str(tmp_path / "state.pt")))
    losses = [train_epoch(state, config, data) for state in (straight, again)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    expected, found = (state.export_weights() for state in (straight, again))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4)


def test_the_history_ends_with_the_last_epoch_even_if_that_was_the_worst(tmp_path: Path) -> None:
    kept = []
    for epoch in (1, 2, 3):
        folder = tmp_path / str(epoch)
        folder.mkdir()
        history = [{"epoch": number} for number in range(1, epoch + 1)]
        torch.save({"epoch": epoch, "history": history}, folder / "state.pt")
        kept.append(Checkpoint(str(folder)))
    best = [(kept[at], {"score": 1.0 - at, "epoch": at + 1}) for at in (0, 1)]

    state = _best_state(Result(None, kept[2], None, None, best_checkpoints=best))

    assert state["epoch"] == 1
    assert [entry["epoch"] for entry in state["history"]] == [1, 2, 3]


@pytest.mark.parametrize("torn", [b"", b'{"ray_version": "2.60'])
def test_a_list_of_checkpoints_that_was_half_written_starts_training_anew(
    planted_run, tmp_path: Path, torn: bytes
) -> None:
    config, _ = planted_run
    place = tmp_path / "checkpoints" / f"train-{'k' * 16}" / "checkpoint_manager_snapshot.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(torn)
    _train(_with(config, epochs=1, num_workers=0), tmp_path)
    assert len(load_bundle(str(tmp_path / "bundles")).metrics["history"]) == 1


def test_patience_ends_training_early(planted_run, tmp_path: Path) -> None:
    config, _ = planted_run
    _train(_with(config, epochs=30, num_workers=0, patience=1, learning_rate=1e-9), tmp_path)
    history = load_bundle(str(tmp_path / "bundles")).metrics["history"]
    assert len(history) < 30


def test_a_loss_that_is_not_finite_stops_with_the_tasks_name(planted_run, tmp_path: Path) -> None:
    config, _ = planted_run
    with pytest.raises(DataError, match=r'the loss of task "[a-z]+" is (nan|inf)'):
        _train(_with(config, learning_rate=1e30, max_failures=0, clip_norm=1e30), tmp_path)


def test_the_manifest_names_its_parents(planted_run) -> None:
    _, workdir = planted_run
    bundles = workdir / "bundles"
    version = (bundles / "CURRENT").read_text().strip()
    manifest = artifacts.read_manifest(str(bundles / version), "bundle")
    dataset = json.loads((workdir / "dataset" / "manifest.json").read_text())
    assert manifest.parents["dataset"] == dataset["id"]


def test_a_checkpoint_on_its_way_lies_in_rays_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # as Ray Train does
    reported: list[tuple[str, list[str]]] = []

    def report(metrics: dict[str, float], checkpoint: ray.train.Checkpoint) -> None:
        reported.append((checkpoint.path, os.listdir(checkpoint.path)))

    monkeypatch.setattr("ray.train.report", report)
    state = SimpleNamespace(epoch=1, history=[{"loss": 1.0}], state_dict=dict)
    _report(state, {}, 0.5, rank=0)
    ((folder, names),) = reported
    assert (os.path.dirname(folder), names) == (str(tmp_path), ["state.pt"])
    assert os.listdir(tmp_path) == []


def test_ctrl_c_while_ray_train_works_is_a_ctrl_c_and_its_handler_goes(
    planted_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit() -> None:
        # What Ray Train does: a handler that stays, and a clean exit once the run is aborted.
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("mtrec.train._build_trainer", lambda *_, **__: SimpleNamespace(fit=fit))
    monkeypatch.setattr("mtrec.train.follow", lambda *_, **__: nullcontext(print))
    before = signal.getsignal(signal.SIGINT)
    settings = {"epochs": 1, "fitted_on": ["train"]}
    with pytest.raises(KeyboardInterrupt):
        _fit(planted_run[0], settings, storage_path=str(tmp_path), run_name="train")
    assert signal.getsignal(signal.SIGINT) is before
