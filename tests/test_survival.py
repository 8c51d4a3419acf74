"""A process killed in the middle of its work: the next run ends in an undisturbed run's report.

One set of planted data and one configuration; drivers are processes of their own, with a Ray of
their own. A kill comes when the work folder or the log shows that its stage is half done.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from processes import descendants

from mtrec import artifacts
from mtrec.chain import run
from mtrec.config import Config
from mtrec.configfile import dump_config, parse_config
from mtrec.data.sources import planted
from mtrec.stages import STAGES
from mtrec.versions import find_bundle

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Four parts, so that `score` has files to keep.
PROGRAM = """
from mtrec.cli import main
from mtrec.data import pipeline
pipeline.EVENTS_PER_PART = 360
main()
"""
EPOCHS = 6
WAIT_S = 600.0


class Driver:
    """`mtrec run` in a process of its own, and the processes that it starts."""

    def __init__(self, config: Config) -> None:
        self.workdir = Path(config.run.workdir)
        self._config, self._log = config, self.workdir.with_suffix(".log")

    def __enter__(self) -> "Driver":
        place = self.workdir.with_suffix(".yaml")
        place.write_text(dump_config(self._config))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "run", "--config", str(place)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the driver and its Ray, unless it has ended: then its id may be another's."""
        if self._process.poll() is not None:
            return
        below = descendants(self._process.pid)
        self._process.kill()
        self._process.wait()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    def epochs(self) -> list[int]:
        """The epochs that it has shown."""
        return [int(epoch) for epoch in re.findall(r"train\.epoch epoch=(\d+)", self.log)]

    def files(self, pattern: str) -> list[Path]:
        """What there is in its workdir."""
        return list(self.workdir.glob(pattern))

    def wait_for(self, what: Callable[["Driver"], object]) -> None:
        """Wait until something is so, which must be before the driver ends."""
        end = time.monotonic() + WAIT_S
        while not what(self):
            assert self._process.poll() is None, f"it ended before: {self.log}"
            assert time.monotonic() < end, f"it never came: {self.log}"
            time.sleep(0.05)

    def kill_worker(self, title: str) -> None:
        """Kill one process below it whose title holds a text."""
        os.kill(self.titled(title)[0], signal.SIGKILL)

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        assert self._process.wait(WAIT_S) == 0, self.log

    def titled(self, title: str) -> list[int]:
        """The processes below it whose titles hold a text."""
        return [pid for pid, found in descendants(self._process.pid).items() if title in found]


# When a stage is half done, and what would say that it is over.
HALF_DONE: dict[str, tuple[Callable[[Driver], object], str]] = {
    # The catalogue is written before the parts of the events are.
    "prepare": (lambda driver: driver.files("dataset.writing-*/items.parquet"), "dataset"),
    "embed": (lambda driver: driver.files("embeddings/*/*.parquet"), "embeddings"),
    "train": (lambda driver: 2 in driver.epochs(), "bundles"),
    "evaluate": (lambda driver: driver.titled("RankUsers"), "report"),
    "score": (lambda driver: driver.files("predictions.writing-*/part-*.parquet"), "predictions"),
}


@pytest.fixture(scope="module")
def plant_run(plant: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give a function that gives the configuration of a run with a workdir of that name."""
    folder = tmp_path_factory.mktemp("survival")
    tree = plant(folder).model_dump(mode="json", exclude_unset=True)
    planted(folder / "data", num_users=120)
    # Long item texts and small batches: every stage takes a while.
    items = folder / "data" / "items.csv"
    header, *rows = items.read_text().splitlines()
    words = np.random.default_rng(0).integers(0, 10**9, size=(len(rows), 2_000))
    told = [f"{row},{' '.join(map(str, said))}" for row, said in zip(rows, words, strict=True)]
    items.write_text("\n".join([f"{header},plot", *told, ""]))
    tree["data"]["items"]["columns"]["plot"] = {"kind": "text"}
    tree["text"]["item_template"] = "{title} | {genres} | {plot}"
    tree["train"] |= {"epochs": EPOCHS, "batch_size": 4}
    tree["score"] = {"batch_size": 1}

    def configure(name: str) -> Config:
        return parse_config({**tree, "run": {"workdir": str(folder / name)}})

    return configure


@pytest.fixture(scope="module")
def undisturbed(plant_run: Callable[[str], Config]) -> Path:
    """Give the workdir of a run that nobody disturbed."""
    with Driver(plant_run("undisturbed")) as driver:
        driver.finish()
    assert len(driver.files("predictions/part-*.parquet")) == 4
    return driver.workdir


def figures(workdir: Path) -> tuple[dict[str, object], dict[str, float]]:
    """Give what a report says in words and in numbers, without names and times of the run."""
    words: dict[str, object] = {}
    numbers: dict[str, float] = {}

    def read(value: object, at: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name not in ("version", "created", "seconds"):
                    read(inner, f"{at}/{name}")
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                read(inner, f"{at}/{number}")
        elif isinstance(value, float):
            numbers[at] = value
        else:
            words[at] = value

    read(json.loads((workdir / "report" / "report.json").read_text()), "")
    return words, numbers


def assert_same(workdir: Path, undisturbed: Path) -> None:
    """Check that two runs report and predict the same."""
    (said, found), (expected_said, expected) = (
        figures(folder) for folder in (workdir, undisturbed)
    )
    assert len(expected) > 500
    assert said == expected_said
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    lists = [
        pq.read_table(sorted((folder / "predictions").glob("*.parquet")))
        for folder in (workdir, undisturbed)
    ]
    for name in lists[1].column_names:
        found_column, column = (table.column(name).to_pylist() for table in lists)
        if isinstance(column[0], float):
            assert found_column == pytest.approx(column, rel=1e-6, abs=1e-6), name
        else:
            assert found_column == column, name


def assert_whole(config: Config) -> None:
    """Check that every artifact is what its manifest says, and that nothing lies beside them."""
    workdir = Path(config.run.workdir)
    for name in ("dataset", "embeddings", "report", "predictions"):
        place = str(workdir / name)
        artifacts.verify(place, artifacts.read_manifest(place, name), hashes=True)
    bundle = find_bundle(str(workdir / "bundles"))
    artifacts.verify(bundle, artifacts.read_manifest(bundle, "bundle"), hashes=True)
    unfinished = re.compile(r"\.(writing|old)-|\.tmp$")
    assert [path for path in workdir.rglob("*") if unfinished.search(path.name)] == []
    assert run(config).skipped == list(STAGES)


def test_a_driver_killed_in_one_stage_after_the_other(
    plant_run: Callable[[str], Config], undisturbed: Path
) -> None:
    config = plant_run("drivers")
    shown: list[int] = []
    for stage, (half_done, artifact) in HALF_DONE.items():
        with Driver(config) as driver:
            driver.wait_for(half_done)
        assert not driver.files(f"{artifact}/**/manifest.json"), f"{stage} was over"
        shown += driver.epochs()
    with Driver(config) as driver:
        driver.finish()
    # Each went on where the one before was killed.
    embedded = artifacts.read_manifest(str(driver.workdir / "embeddings"), "embeddings").details
    assert embedded["reused"] > 0 and embedded["embedded"] > 0
    assert shown.count(1) == 1 and EPOCHS in shown
    assert "score.resume" in driver.log
    assert_same(driver.workdir, undisturbed)
    assert_whole(config)


def test_workers_of_every_stage_killed_in_one_run(
    plant_run: Callable[[str], Config], undisturbed: Path
) -> None:
    config = plant_run("workers")
    with Driver(config) as driver:
        for stage, title in (
            ("embed", "_EmbedTexts"),
            ("train", "RayTrainWorker"),
            ("evaluate", "RankUsers"),
            ("score", "ScoreParts"),
        ):
            half_done, artifact = HALF_DONE[stage]
            driver.wait_for(half_done)
            driver.kill_worker(title)
            assert not driver.files(f"{artifact}/**/manifest.json"), f"{stage} was over"
        driver.finish()
    assert driver.epochs().count(1) == 1
    assert_same(driver.workdir, undisturbed)
    assert_whole(config)
