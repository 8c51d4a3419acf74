import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import Small

from mtrec.data.features import FeatureTransform
from mtrec.data.histories import Histories
from mtrec.errors import ArtifactError
from mtrec.userstore import UserStore, build_user_store, copy_without

NOTHING = FeatureTransform()


@pytest.fixture
def store(small: Small) -> UserStore:
    return UserStore(f"{small.path}/users")


def histories_of(users: dict[str, list[int]]) -> Histories:
    items = [item for events in users.values() for item in events]
    lengths = [len(events) for events in users.values()]
    return Histories(
        user_ids=np.array(list(users), object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_index=np.array(items, np.int32),
        timestamp=np.arange(len(items), dtype=np.float64),
        split=np.zeros(len(items), np.int8),
    )


@pytest.mark.parametrize(
    ("prefix", "limit", "found"),
    [
        ("", 3, ["u0", "u1", "u2"]),
        ("u", 99, [f"u{at}" for at in range(8)]),
        ("u5", 5, ["u5"]),
        ("t", 5, []),
        ("v", 5, []),
        ("u", 0, []),
        ("\ud800", 5, []),
    ],
)
def test_ids_are_found_by_their_beginning(
    store: UserStore, prefix: str, limit: int, found: list[str]
) -> None:
    assert store.beginning(prefix, limit) == found


@settings(max_examples=40)
@given(
    users=st.dictionaries(st.text(min_size=1, max_size=4), st.lists(st.integers(2, 9), max_size=6)),
    data=st.data(),
)
def test_a_copy_without_some_users_is_the_store_of_the_others(
    tmp_path_factory: pytest.TempPathFactory, users: dict[str, list[int]], data: st.DataObject
) -> None:
    users = {user: users[user] for user in sorted(users, key=lambda user: user.encode())}
    gone = data.draw(st.sets(st.sampled_from(sorted(users)))) if users else set()
    folder = tmp_path_factory.mktemp("store")

    def build(name: str, these: dict[str, list[int]]) -> None:
        pq.write_table(histories_of(these).to_table(), folder / f"{name}.parquet")
        table = pa.table({"user_id": pa.array(list(these), pa.string())})
        build_user_store(
            *(str(folder / name), [str(folder / f"{name}.parquet")], table, NOTHING),
            max_events=3,
        )

    build("all", users)
    build("stay", {user: items for user, items in users.items() if user not in gone})
    positions = UserStore(str(folder / "all")).find(sorted(gone))
    copy_without(str(folder / "all"), str(folder / "copy"), positions)

    wanted = {path.name for path in (folder / "stay").iterdir()}
    assert {path.name for path in (folder / "copy").iterdir()} == wanted
    for name in wanted - {"event_timestamp.npy"}:  # `histories_of` counts them from the start
        assert (folder / "copy" / name).read_bytes() == (folder / "stay" / name).read_bytes(), name


def test_stored_events_are_the_latest_ones_of_known_items(small: Small, store: UserStore) -> None:
    known = small.histories.select(small.histories.item_index >= 2)
    found = store.histories(store.find(known.user_ids.tolist()))
    assert found.user_ids.tolist() == known.user_ids.tolist()
    for row in range(len(known)):
        stop = known.offsets[row + 1]
        start = max(known.offsets[row], stop - 4)
        ours = slice(found.offsets[row], found.offsets[row + 1])
        assert found.item_index[ours].tolist() == known.item_index[start:stop].tolist()
        assert found.timestamp[ours].tolist() == known.timestamp[start:stop].tolist()
        for name, values in known.numbers.items():
            assert np.array_equal(found.numbers[name][ours], values[start:stop], equal_nan=True)
        for name, codes in known.categories.items():
            assert found.categories[name][ours].tolist() == codes[start:stop].tolist()


def test_all_known_items_of_the_history_are_seen(small: Small, store: UserStore) -> None:
    for row, user_id in enumerate(small.histories.user_ids):
        start, stop = small.histories.offsets[row : row + 2]
        touched = set(small.histories.item_index[start:stop].tolist()) - {1}
        assert store.seen(store.find([user_id]))[0].tolist() == sorted(touched)


def test_unknown_user_has_no_events_and_the_features_of_nobody(store: UserStore) -> None:
    positions = store.find(["u0", "nobody", "", "\ud800"])
    assert positions.tolist() == [0, -1, -1, -1]
    assert np.diff(store.histories(positions).offsets).tolist() == [3, 0, 0, 0]
    assert [len(seen) for seen in store.seen(positions)] == [3, 0, 0, 0]
    rows = store.rows(positions)
    # Age 20 and none (24, the fill), scaled by (x - 24) / 2; jobs cook and missing.
    assert rows.features.numbers[:2, 0].tolist() == [-2.0, 0.0]
    assert rows.features.categories["job"][:2].tolist() == [2, 4]
    assert rows.is_known.tolist() == [True, False, False, False]


def test_text_is_kept_for_users_who_have_one(small: Small, store: UserStore) -> None:
    rows = store.rows(store.find(["u0", "u7", "nobody"]))
    assert rows.has_text.tolist() == [0.0, 1.0, 0.0]
    assert np.linalg.norm(rows.text, axis=1) == pytest.approx([0.0, 1.0, 0.0], abs=1e-3)


def test_text_of_a_request_replaces_the_stored_one(store: UserStore) -> None:
    rows = store.rows(store.find(["u7", "nobody"]))
    vector = np.full((1, 32), 0.5, np.float32)
    told = rows.with_text([1], vector)
    assert told.has_text.tolist() == [1.0, 1.0]
    assert told.is_known.tolist() == [True, True]
    assert np.array_equal(told.text[1], vector[0])
    assert np.array_equal(told.text[0], rows.text[0])


@settings(max_examples=40, deadline=None)
@given(ids=st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=12))
def test_every_id_is_found_at_its_place(
    tmp_path_factory: pytest.TempPathFactory, ids: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    users = pa.table({"user_id": pa.array(sorted(ids), pa.string())})
    build_user_store(str(folder), [], users, NOTHING, max_events=3)
    store = UserStore(str(folder))
    assert store.find(sorted(ids)).tolist() == list(range(len(ids)))
    assert store.user_ids(np.arange(len(ids))) == sorted(ids)
    assert store.find([f"{user_id}x" for user_id in ids if f"{user_id}x" not in ids]).tolist() == [
        -1 for user_id in ids if f"{user_id}x" not in ids
    ]


def test_order_of_files_and_rows_does_not_matter(tmp_path: Path) -> None:
    first, second = {"b": [2, 3], "d": [4]}, {"a": [5, 2, 5], "c": []}
    users = pa.table({"user_id": ["a", "b", "c", "d"]})
    for name, parts in (("one", [first, second]), ("two", [second, first])):
        paths = []
        for at, part in enumerate(parts):
            path = tmp_path / f"{name}-{at}.parquet"
            pq.write_table(histories_of(part).to_table(), path)
            paths.append(str(path))
        build_user_store(str(tmp_path / name), paths, users, NOTHING, max_events=2)
    found = UserStore(str(tmp_path / "one"))
    everyone = np.arange(4)
    assert found.histories(everyone).item_index.tolist() == [2, 5, 2, 3, 4]
    assert [seen.tolist() for seen in found.seen(everyone)] == [[2, 5], [2, 3], [], [4]]
    for file in sorted((tmp_path / "one").iterdir()):
        if "timestamp" not in file.name:
            assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_users_out_of_order_are_refused(tmp_path: Path) -> None:
    users = pa.table({"user_id": ["b", "a"]})
    with pytest.raises(ArtifactError, match="not sorted"):
        build_user_store(str(tmp_path), [], users, NOTHING, max_events=2)


def test_history_of_an_unlisted_user_is_refused(tmp_path: Path) -> None:
    pq.write_table(histories_of({"z": [2]}).to_table(), tmp_path / "part.parquet")
    users = pa.table({"user_id": ["a"]})
    with pytest.raises(ArtifactError, match=r"lacks.*'z'"):
        build_user_store(
            str(tmp_path / "users"), [str(tmp_path / "part.parquet")], users, NOTHING, max_events=2
        )


@pytest.mark.parametrize("name", ["ids.npy", "event_item_index.npy", "has_text.npy", "store.json"])
def test_missing_file_is_an_artifact_error(small: Small, tmp_path: Path, name: str) -> None:
    shutil.copytree(f"{small.path}/users", tmp_path / "users")
    (tmp_path / "users" / name).unlink()
    with pytest.raises(ArtifactError, match="cannot be opened"):
        UserStore(str(tmp_path / "users"))


def test_pickled_array_is_not_read(small: Small, tmp_path: Path) -> None:
    shutil.copytree(f"{small.path}/users", tmp_path / "users")
    np.save(tmp_path / "users" / "ids.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="cannot be opened"):
        UserStore(str(tmp_path / "users"))


def test_another_number_of_users_is_an_artifact_error(small: Small, tmp_path: Path) -> None:
    shutil.copytree(f"{small.path}/users", tmp_path / "users")
    meta = json.loads((tmp_path / "users" / "store.json").read_text())
    (tmp_path / "users" / "store.json").write_text(json.dumps(meta | {"num_users": 3}))
    with pytest.raises(ArtifactError, match="is damaged"):
        UserStore(str(tmp_path / "users"))


def test_store_maps_its_files_instead_of_reading_them(store: UserStore) -> None:
    assert all(isinstance(getattr(store, name).base, np.memmap) for name in ("_ids", "_item_index"))
