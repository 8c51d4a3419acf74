"""The whole chain with its workdir on S3, and what becomes of it when the connection is cut."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from s3_server import BUCKET, Commands, Line, s3_environment, s3_server

from mtrec import artifacts
from mtrec.config import Config
from mtrec.configfile import dump_config
from mtrec.stages import STAGES

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Line, fs.S3FileSystem]]:
    with s3_server() as opened:
        yield opened


@pytest.fixture(scope="module")
def mtrec(
    server: tuple[Line, fs.S3FileSystem], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Commands]:
    commands = Commands(tmp_path_factory.mktemp("s3"), s3_environment(server[0]))
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def config_file(planted_run: tuple[Config, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the configuration of the local run that a run on S3 is compared with."""
    path = tmp_path_factory.mktemp("s3-data") / "config.yaml"
    path.write_text(dump_config(planted_run[0]))
    return str(path)


def files(server: fs.S3FileSystem, folder: str) -> list[str]:
    selector = fs.FileSelector(f"{BUCKET}/{folder}", recursive=True, allow_not_found=True)
    infos = server.get_file_info(selector)
    return sorted(i.path.removeprefix(f"{BUCKET}/") for i in infos if i.type == fs.FileType.File)


def tree(server: fs.S3FileSystem, path: str) -> Any:
    with server.open_input_stream(f"{BUCKET}/{path}") as stream:
        return json.loads(stream.read())


def predictions(system: fs.FileSystem, folder: str) -> pa.Table:
    infos = system.get_file_info(fs.FileSelector(folder))
    paths = sorted(info.path for info in infos if info.path.endswith(".parquet"))
    return pa.concat_tables([pq.read_table(path, filesystem=system) for path in paths])


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    """Take out of a report what says when and how fast, and the name that the bundle got."""
    curves = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in report["curves"]]
    bundle = {k: v for k, v in report["bundle"].items() if k not in ("version", "created")}
    return {**report, "curves": curves, "bundle": bundle}


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Compare trees; numbers to 1e-6."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for at, value in enumerate(expected):
            assert_same(found[at], value, f"{where}/{at}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6), where
    else:
        assert found == expected, where


def assert_equal_results(server: fs.S3FileSystem, folder: str, workdir: Path) -> None:
    """Compare a run on the server with one in a local folder."""
    dataset = artifacts.read_manifest(str(workdir / "dataset"), "dataset")
    assert tree(server, f"{folder}/dataset/manifest.json")["content"] == dataset.content
    local = fs.LocalFileSystem()
    found = predictions(server, f"{BUCKET}/{folder}/predictions")
    assert found.equals(predictions(local, str(workdir / "predictions")))
    report = json.loads((workdir / "report" / "report.json").read_text())
    told = tree(server, f"{folder}/report/report.json")
    assert_same(without_times(told), without_times(report))


def test_a_run_on_s3_survives_a_short_cut_equals_a_local_one_and_leaves_nothing_here(
    server: tuple[Line, fs.S3FileSystem],
    mtrec: Commands,
    config_file: str,
    planted_run: tuple[Config, Path],
) -> None:
    line, direct = server
    options = ("--config", config_file, "--set", f"run.workdir=s3://{BUCKET}/whole")
    options += ("--set", "train.num_workers=0")  # checkpoints on S3 are the next test's
    line.cut_at(f"PUT /{BUCKET}/whole/dataset/transform.json", mend_after_s=1.0)
    code, _, told = mtrec.run("run", *options)
    assert code == 0, told
    assert line.was_cut.is_set()
    assert_equal_results(direct, "whole", planted_run[1])

    code, printed, told = mtrec.run("run", *options)
    assert code == 0, told
    assert printed.count("up to date, nothing to do") == len(STAGES)

    code, printed, told = mtrec.run("bundle", "verify", f"s3://{BUCKET}/whole/bundles")
    assert (code, told) == (0, "")
    assert printed.startswith(f"s3://{BUCKET}/whole/bundles/20")
    assert ": ok, " in printed
    code, printed, told = mtrec.run("bundle", "show", f"s3://{BUCKET}/whole/bundles")
    assert code == 0, told
    current = direct.open_input_stream(f"{BUCKET}/whole/bundles/CURRENT").read().decode()
    assert json.loads(printed)["model_version"] == current.strip()

    assert mtrec.left() == []
    assert not [path for path in files(direct, "whole") if path.endswith(("lock", ".writing"))]


def test_a_run_whose_connection_is_cut_says_so_and_goes_on_when_it_is_back(
    server: tuple[Line, fs.S3FileSystem],
    mtrec: Commands,
    config_file: str,
    planted_run: tuple[Config, Path],
) -> None:
    line, direct = server
    options = ("--config", config_file, "--set", f"run.workdir=s3://{BUCKET}/cut")
    for request, unfinished in (
        (rf"PUT /{BUCKET}/cut/checkpoints/\S*state\.pt", "bundles"),
        (f"PUT /{BUCKET}/cut/predictions/part", "predictions"),
    ):
        line.cut_at(request)
        begin = time.monotonic()
        code, _, told = mtrec.run("run", *options)
        seconds = time.monotonic() - begin
        print(f"{request}: {seconds:.1f} s\n{told[-600:]}")
        assert line.was_cut.is_set()
        assert code == 4, told
        assert "look at the network, the endpoint and the credentials" in told
        names = files(direct, f"cut/{unfinished}")
        assert not [name for name in names if name.endswith("manifest.json")]
        line.mend()

    code, _, told = mtrec.run("run", *options)
    assert code == 0, told
    assert_equal_results(direct, "cut", planted_run[1])
    assert mtrec.left() == []
