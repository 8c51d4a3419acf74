import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_bundle import Small, make_small

from mtrec import artifacts, storage
from mtrec.bundle import EncoderInfo, load_bundle
from mtrec.errors import ArtifactError
from mtrec.popular import popularity
from mtrec.recommender import Recommender
from mtrec.text.spec import EncoderSpec


@pytest.fixture
def copy(small: Small, tmp_path: Path) -> Path:
    shutil.copytree(small.bundles, tmp_path / "bundles")
    return tmp_path / "bundles"


def test_what_is_loaded_is_what_was_saved(small: Small) -> None:
    bundle = load_bundle(small.path)
    assert (bundle.version, bundle.config) == (small.version, small.config)
    assert bundle.fitted_on == ["train"]
    assert bundle.metrics["validation"] == {"click/ndcg@10": 0.5}
    assert bundle.transform.to_json() == json.loads((small.dataset / "transform.json").read_text())
    assert bundle.encoder is not None and bundle.encoder.dim == 32
    again = load_bundle(small.path)
    for name, value in bundle.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert not bundle.model.training


def test_with_a_half_life_users_of_whom_nothing_is_known_get_what_is_popular_of_late(
    tmp_path: Path,
) -> None:
    small = make_small(tmp_path, half_life=0.05)
    expected = popularity(small.histories, 14, 0.05)
    bundle = load_bundle(small.path)
    assert bundle.popular == pytest.approx(expected)
    assert bundle.half_life == 0.05
    (answer,) = Recommender(bundle).recommend([{"k": 3}])
    ids = bundle.items.column("item_id").to_pylist()
    best = sorted(range(2, 14), key=lambda at: (-expected[at], ids[at - 2]))[:3]
    assert answer["cold_start"]
    assert [entry["item_id"] for entry in answer["recommendations"]] == [ids[a - 2] for a in best]
    assert (
        best
        != sorted(
            range(2, 14),
            key=lambda at: (-popularity(small.histories, 14, None)[at], ids[at - 2]),
        )[:3]
    )


def test_popular_counts_every_kept_event(small: Small) -> None:
    expected = np.bincount(small.histories.item_index, minlength=14)
    expected[:2] = 0
    assert load_bundle(small.path).popular.tolist() == expected.tolist()


def test_what_is_searched_is_the_sum_of_content_and_collaborative(small: Small) -> None:
    vectors = load_bundle(small.path).vectors

    np.testing.assert_array_equal(vectors.search, vectors.content + vectors.collaborative)


def test_a_bundle_from_before_it_held_what_is_searched_opens(small: Small, copy: Path) -> None:
    place = f"{copy}/{small.version}"
    manifest = storage.read_json(f"{place}/manifest.json")
    del manifest["files"]["item_search.npy"]
    (Path(place) / "item_search.npy").unlink()
    storage.write_json(f"{place}/manifest.json", manifest)

    vectors = load_bundle(place).vectors
    np.testing.assert_array_equal(vectors.search, load_bundle(small.path).vectors.search)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_vectors_and_weights_are_mapped_so_that_processes_share_them(small: Small) -> None:
    bundle = load_bundle(small.path)
    mapped = Path("/proc/self/maps").read_text()

    assert isinstance(bundle.vectors.search.base, np.memmap)
    for name in ("item_search", "item_content", "item_collaborative", "item_bias", "item_text"):
        assert f"{small.path}/{name}.npy" in mapped
    assert f"{small.path}/weights.safetensors" in mapped


def test_same_inputs_give_the_same_files(small: Small, tmp_path: Path) -> None:
    other = make_small(tmp_path)
    first, second = (artifacts.read_manifest(s.path, "bundle").files for s in (small, other))
    differing = {name for name in first if first[name] != second.get(name)}
    assert differing <= {"config.json"}  # it has the time
    assert set(first) == set(second)


def test_nothing_in_a_bundle_is_a_pickle(small: Small) -> None:
    kinds = {Path(name).suffix for name in storage.list_files(small.path)}
    assert kinds == {".json", ".npy", ".parquet", ".safetensors"}
    for name in storage.list_files(small.path):
        if name.endswith(".npy"):
            np.load(Path(small.path) / name, allow_pickle=False)


@pytest.mark.parametrize(
    "name",
    [
        "weights.safetensors",
        "item_bias.npy",
        "config.json",
        "users/seen_items.npy",
        "items.parquet",
    ],
)
def test_one_changed_byte_is_an_artifact_error(small: Small, copy: Path, name: str) -> None:
    file = copy / small.version / name
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(bytes(damaged))
    with pytest.raises(ArtifactError, match=r"another SHA-256.*\n.*run again"):
        load_bundle(str(copy))


def test_missing_file_is_an_artifact_error(small: Small, copy: Path) -> None:
    (copy / small.version / "popular.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"popular\.parquet is missing"):
        Recommender.load(str(copy))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{}"),
        ("config.json", b"not json"),
        ("weights.safetensors", b"\x80\x04pickled"),
        ("item_bias.npy", b"\x93NUMPY"),
        ("items.parquet", b"PAR1"),
        ("transform.json", b"[]"),
    ],
)
def test_a_file_that_makes_no_sense_is_an_artifact_error(
    small: Small, copy: Path, name: str, content: bytes
) -> None:
    folder = copy / small.version
    (folder / name).write_bytes(content)
    # As if a broken writer had made it: the manifest agrees with what is there.
    manifest = json.loads((folder / "manifest.json").read_text())
    digest, size = storage.hash_file(str(folder / name))
    manifest["files"][name] = {"sha256": digest, "bytes": size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_bundle(str(copy))


def test_dataset_is_no_bundle(tmp_path: Path) -> None:
    with artifacts.write_artifact(str(tmp_path / "x"), kind="dataset", key="k") as writer:
        storage.write_bytes(writer.join("file"), b"1")
    with pytest.raises(ArtifactError, match="holds a dataset, expected a bundle"):
        load_bundle(str(tmp_path / "x"))


def test_failed_save_leaves_no_folder_and_no_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("mtrec.bundle.build_user_store", full_disk)
    with pytest.raises(OSError, match="no space"):
        make_small(tmp_path)
    assert list((tmp_path / "bundles").iterdir()) == []


def test_bundle_at_a_uri_loads_like_a_local_one(small: Small) -> None:
    assert load_bundle(f"file://{small.path}").version == small.version


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (EncoderInfo("a", "x", 8), True),
        (EncoderInfo("b", "x", 8, "model"), True),
        (EncoderInfo("b", "x", 8, "other"), False),
        (EncoderInfo("a", "x", 9), False),
    ],
)
def test_encoder_is_the_bundles_whatever_its_precision(info: EncoderInfo, expected: bool) -> None:
    spec = EncoderSpec("a", "model", "x", 8, "mean", "float32")
    assert info.is_made_by(spec) is expected


def test_every_file_can_be_read_by_another_user(small: Small) -> None:
    files = [path for path in Path(small.path).rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)
