import csv
import hashlib
import zipfile
from pathlib import Path

import pytest

from mtrec.configfile import parse_config
from mtrec.data import sources
from mtrec.errors import DataError


def fake_wheel(folder: Path) -> None:
    with zipfile.ZipFile(folder / "fake.whl", "w") as archive:
        for name in sources.MOVIELENS_FILES:
            entry = zipfile.ZipInfo("recbole/dataset_example/ml-100k/" + name)
            archive.writestr(entry, f"content of {name}")


@pytest.fixture
def wheel_hash(tmp_path: Path) -> str:
    folder = tmp_path / "for-hash"
    folder.mkdir()
    fake_wheel(folder)
    return hashlib.sha256((folder / "fake.whl").read_bytes()).hexdigest()


def test_movielens_is_extracted_once_and_then_reused(tmp_path, wheel_hash):
    fetched = []

    def download(folder):
        fetched.append(folder)
        fake_wheel(folder)

    first = sources.movielens_100k(tmp_path / "cache", download, wheel_hash)
    second = sources.movielens_100k(tmp_path / "cache", download, wheel_hash)
    assert first == second
    assert len(fetched) == 1
    assert (Path(first) / "ml-100k.inter").read_text() == "content of ml-100k.inter"
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [Path(first).name]


def test_a_cache_that_lost_a_file_is_completed(tmp_path, wheel_hash):
    first = Path(sources.movielens_100k(tmp_path / "cache", fake_wheel, wheel_hash))
    (first / "ml-100k.item").unlink()
    assert sources.movielens_100k(tmp_path / "cache", fake_wheel, wheel_hash) == str(first)
    assert (first / "ml-100k.item").read_text() == "content of ml-100k.item"


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match=r"SHA-256 .* expected 9c994820.*\n.*--data DIR"):
        sources.movielens_100k(tmp_path / "cache", fake_wheel)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failed_download_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOVIELENS_PACKAGE", "recbole==0.0.0.invalid.version")
    with pytest.raises(DataError, match="--data DIR"):
        sources.movielens_100k(tmp_path / "cache")


def test_a_given_root_is_taken_and_nothing_is_fetched(tmp_path):
    tree = sources.planted(tmp_path)
    tree["data"]["source"] = "movielens-100k"
    assert sources.resolve_root(parse_config(tree).data) == str(tmp_path)


def test_planted_tables_hold_the_truth_they_promise(tmp_path):
    tree = sources.planted(tmp_path, num_users=30, num_items=24, num_groups=3, events_per_user=8)
    parse_config(tree)
    rows = list(csv.DictReader((tmp_path / "interactions.csv").open()))
    assert len(rows) == 30 * 8
    assert len({(row["user_id"], row["item_id"]) for row in rows}) == 30 * 8
    for row in rows:
        own = int(row["user_id"][1:]) % 3 == int(row["item_id"][1:]) % 3
        assert (int(row["rating"]) >= 4) == own


def test_planted_tables_are_the_same_bytes_for_a_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sources.planted(tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "interactions.csv").read_bytes() for name in "abc")
    assert a == b != c
