"""Copies of remote artifacts: shared while they are opened, and nothing left."""

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from s3_server import BUCKET, s3_environment, s3_server

from mtrec import artifacts, storage
from mtrec.artifacts import Manifest
from mtrec.localcopy import local_files

PLACE = f"s3://{BUCKET}/artifact"


@pytest.fixture
def manifest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Manifest]:
    """Write an artifact to a local S3 server; temporary files go to `tmp_path`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with s3_server() as (line, _):
        for name, value in s3_environment(line).items():
            monkeypatch.setenv(name, value)
        with (
            artifacts.write_artifact(PLACE, kind="bundle", key="k") as writer,
            storage.write_file(writer.join("users", "a.npy")) as file,
        ):
            np.save(file, np.arange(5))
        yield artifacts.read_manifest(PLACE, "bundle")


def test_what_was_mapped_stays_and_the_copys_names_go(manifest: Manifest, tmp_path: Path) -> None:
    with local_files(PLACE, manifest) as folder:
        artifacts.verify(folder, manifest, hashes=True)
        values = np.load(os.path.join(folder, "users", "a.npy"), mmap_mode="r")
    assert os.listdir(tmp_path) == []
    assert values.tolist() == [0, 1, 2, 3, 4]


def test_two_who_open_it_at_once_share_one_copy(manifest: Manifest, tmp_path: Path) -> None:
    with local_files(PLACE, manifest) as first:
        with local_files(PLACE, manifest) as second:
            assert first == second
        assert len(os.listdir(tmp_path)) == 1
        assert os.path.exists(os.path.join(first, "users", "a.npy"))
    assert os.listdir(tmp_path) == []


def test_many_at_once_each_find_it_whole(manifest: Manifest, tmp_path: Path) -> None:
    found: list[list[int]] = []

    def load() -> None:
        for _ in range(5):
            with local_files(PLACE, manifest) as folder:
                found.append(np.load(os.path.join(folder, "users", "a.npy")).tolist())

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == 20 * [[0, 1, 2, 3, 4]]
    assert os.listdir(tmp_path) == []


def test_a_copy_that_goes_while_another_asks_for_it_is_made_anew(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir
    asked: list[str] = []

    def found_and_gone(path: str, mode: int = 0o777) -> None:
        asked.append(os.fspath(path))
        if len(asked) == 1:  # the last of its users takes it away between two calls
            raise FileExistsError(path)
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", found_and_gone)
    with local_files(PLACE, manifest) as folder:
        artifacts.verify(folder, manifest, hashes=True)
    assert asked[:2] == [folder, folder]
    assert os.listdir(tmp_path) == []


def test_the_copy_of_a_process_that_was_killed_goes_with_the_next(
    manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / f"mtrec-copy-{os.getuid()}-{manifest.content[:32]}").mkdir()
    (tmp_path / f"mtrec-copy-{os.getuid()}-0123").mkdir()
    with local_files(PLACE, manifest) as folder:
        artifacts.verify(folder, manifest, hashes=True)
        assert os.listdir(tmp_path) == [os.path.basename(folder)]
    assert os.listdir(tmp_path) == []


def test_a_copy_that_fails_leaves_nothing(manifest: Manifest, tmp_path: Path) -> None:
    storage.remove(PLACE)
    with pytest.raises(OSError, match="artifact"), local_files(PLACE, manifest):
        pass
    assert os.listdir(tmp_path) == []


def test_a_local_artifact_is_not_copied(tmp_path: Path) -> None:
    with artifacts.write_artifact(str(tmp_path / "a"), kind="bundle", key="k") as writer:
        storage.write_bytes(writer.join("x"), b"1")
    manifest = artifacts.read_manifest(str(tmp_path / "a"), "bundle")
    with local_files(str(tmp_path / "a"), manifest) as folder:
        assert folder == str(tmp_path / "a")
