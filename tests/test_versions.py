import shutil
from pathlib import Path

import pytest
from small_bundle import Small

from mtrec.bundle import load_bundle
from mtrec.errors import ArtifactError
from mtrec.versions import find_bundle, remove_unfinished


@pytest.fixture
def copy(small: Small, tmp_path: Path) -> Path:
    shutil.copytree(small.bundles, tmp_path / "bundles")
    return tmp_path / "bundles"


def test_bundles_folder_follows_current(small: Small) -> None:
    assert find_bundle(str(small.bundles)) == small.path
    assert load_bundle(str(small.bundles)).version == small.version


def test_a_pointer_file_names_a_version_beside_it_or_a_place(
    small: Small, copy: Path, tmp_path: Path
) -> None:
    beside, elsewhere = copy / "LIVE", tmp_path / "pointers" / "shop"
    beside.write_text(f"{small.version}\n")
    elsewhere.parent.mkdir()
    elsewhere.write_text(f"{copy}/{small.version}\n")

    assert find_bundle(str(copy / "CURRENT")) == f"{copy}/{small.version}"
    assert find_bundle(str(beside)) == f"{copy}/{small.version}"
    assert find_bundle(str(elsewhere)) == f"{copy}/{small.version}"
    assert load_bundle(str(elsewhere)).version == small.version


@pytest.mark.parametrize("content", ["", "../other", "a b", "x" * 5000, "\n/two\n/lines\n"])
def test_a_pointer_file_that_names_no_place_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "shop").write_text(content)
    with pytest.raises(ArtifactError, match="shop is damaged"):
        find_bundle(str(tmp_path / "shop"))


@pytest.mark.parametrize("uri", ["", "file://"])
def test_versions_that_killed_runs_were_writing_go(small: Small, copy: Path, uri: str) -> None:
    for name in ("20260101-000000-abc.writing-0123", "20260101-000001-abc", "mine"):
        (copy / name).mkdir()
        (copy / name / "weights.safetensors").write_bytes(b"half")
    (copy / f"CURRENT.{'0' * 32}.tmp").write_bytes(b"2026")

    remove_unfinished(f"{uri}{copy}")

    assert {path.name for path in copy.iterdir()} == {"CURRENT", "mine", small.version}
    remove_unfinished(f"{copy}/none")


def test_version_tells_its_time_and_key(small: Small) -> None:
    date, time, key = small.version.split("-")
    assert (len(date), len(time), key) == (8, 6, "01234567")
    assert (small.bundles / "CURRENT").read_text() == f"{small.version}\n"


@pytest.mark.parametrize("content", ["", "../../etc", "20200101-000000-aaaaaaaa/.."])
def test_damaged_current_is_an_artifact_error(copy: Path, content: str) -> None:
    (copy / "CURRENT").write_text(content)
    with pytest.raises(ArtifactError, match="CURRENT is damaged"):
        load_bundle(str(copy))


def test_current_that_names_no_bundle_is_an_artifact_error(copy: Path) -> None:
    (copy / "CURRENT").write_text("20200101-000000-aaaaaaaa\n")
    with pytest.raises(ArtifactError, match="no manifest"):
        load_bundle(str(copy))


def test_folder_without_a_bundle_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no bundle"):
        load_bundle(str(tmp_path / "nothing"))
