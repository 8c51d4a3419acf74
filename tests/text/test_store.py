"""The store of vectors: round trips, atomic shards, damage named, encoders kept apart."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec import storage
from mtrec.config import TextConfig
from mtrec.errors import ArtifactError
from mtrec.text.hashing import HashingEncoder
from mtrec.text.store import EmbeddingStore, store_path

ENCODER = HashingEncoder(8)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore.create(str(tmp_path), ENCODER.spec)


def add(store: EmbeddingStore, *texts: str) -> str:
    name = store.add(texts, ENCODER.encode(texts), ENCODER.count_tokens(texts))
    assert name is not None
    return name


def test_what_was_added_is_looked_up_in_any_order_and_by_another_instance(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    add(store, "a", "b c", "d")
    add(store, "e")
    asked = ["e", "b c", "a", "e", ""]

    found = EmbeddingStore(str(tmp_path), ENCODER.id).lookup(asked)

    np.testing.assert_array_equal(found, ENCODER.encode(asked))
    assert store.count_tokens(asked).total.tolist() == [1, 2, 1, 1, 0]


def test_missing_lists_each_new_text_once_and_never_the_empty_one(store: EmbeddingStore) -> None:
    add(store, "old")

    assert store.missing(["new", "old", "", "new", "other"]) == ["new", "other"]
    add(store, "new")
    assert store.missing(["new", "old", "", "new", "other"]) == ["other"]
    assert store.missing([]) == []


def test_shards_of_another_writer_are_seen(store: EmbeddingStore, tmp_path: Path) -> None:
    assert store.missing(["x"]) == ["x"]

    add(EmbeddingStore(str(tmp_path), ENCODER.id), "x")

    assert store.missing(["x"]) == []


def test_looking_up_an_absent_text_names_it(store: EmbeddingStore) -> None:
    add(store, "here")

    with pytest.raises(ArtifactError, match=r"no vector for 1 of 2 texts, the first is 'gone'"):
        store.lookup(["here", "gone"])


def test_a_shard_is_named_by_its_bytes_and_written_once(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    first, again = add(store, "a", "b"), add(store, "a", "b")

    data = (tmp_path / ENCODER.id / first).read_bytes()
    assert first == again == f"{hashlib.sha256(data).hexdigest()}.parquet"
    assert store.files() == {first: {"sha256": first[:64], "bytes": len(data)}}
    assert storage.list_files(store.path) == sorted([first, "encoder.json"])


def test_a_write_that_is_cut_off_leaves_no_shard(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        add(store, "a")
    monkeypatch.undo()

    assert store.missing(["a"]) == ["a"]
    add(store, "a")
    np.testing.assert_array_equal(store.lookup(["a"]), ENCODER.encode(["a"]))


@pytest.mark.parametrize("how", ["truncated", "flipped", "foreign"])
def test_a_damaged_shard_is_named_with_the_remedy(
    store: EmbeddingStore, tmp_path: Path, how: str
) -> None:
    name = add(store, "a", "b")
    shard = tmp_path / ENCODER.id / name
    data = bytearray(shard.read_bytes())
    if how == "truncated":
        shard.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        place = data.index(ENCODER.encode(["a"]).tobytes())
        data[place] ^= 1
        shard.write_bytes(data)
    else:
        shard.write_bytes(b"PAR1 something else")

    with pytest.raises(ArtifactError, match=f"shard .*{name} is damaged") as caught:
        EmbeddingStore(str(tmp_path), ENCODER.id).lookup(["a"])

    assert "remove that file and run embed again" in str(caught.value)


def test_two_encoders_are_kept_apart(store: EmbeddingStore, tmp_path: Path) -> None:
    other_encoder = HashingEncoder(16)
    other = EmbeddingStore.create(str(tmp_path), other_encoder.spec)
    name = add(store, "a")

    assert other.missing(["a"]) == ["a"]
    assert store.key("a") != other.key("a")
    # Even a shard that strays into the other folder gives no vector for the other encoder's keys.
    stray = tmp_path / other_encoder.id / name
    stray.write_bytes((tmp_path / ENCODER.id / name).read_bytes())
    assert other.missing(["a"]) == ["a"]


def test_a_folder_of_another_encoder_is_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    other = HashingEncoder(16).id
    (tmp_path / other).mkdir()
    note = (tmp_path / ENCODER.id / "encoder.json").read_text()
    (tmp_path / other / "encoder.json").write_text(note)

    with pytest.raises(ArtifactError, match="vectors of two encoders must not be mixed"):
        EmbeddingStore(str(tmp_path), other)


@pytest.mark.parametrize("change", [{"dim": 9}, {"pooling": "cls"}])
def test_an_encoder_json_that_says_otherwise_is_refused(
    store: EmbeddingStore, tmp_path: Path, change: dict[str, object]
) -> None:
    note = tmp_path / ENCODER.id / "encoder.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | change))

    with pytest.raises(ArtifactError, match="expected dim 8, pooling none"):
        EmbeddingStore.create(str(tmp_path), ENCODER.spec)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format_version": 7}', '{"format_version": 1}'])
def test_a_damaged_encoder_json_is_named(store: EmbeddingStore, tmp_path: Path, text: str) -> None:
    (tmp_path / ENCODER.id / "encoder.json").write_text(text)

    with pytest.raises(ArtifactError, match=r"encoder\.json is damaged"):
        EmbeddingStore(str(tmp_path), ENCODER.id)


def test_opening_what_is_not_there_says_to_embed_first(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="run embed first"):
        EmbeddingStore(str(tmp_path), "0" * 32)


@pytest.mark.parametrize(
    "vectors",
    [np.zeros((1, 7), np.float32), np.zeros((2, 8), np.float32), np.full((1, 8), np.nan, "f4")],
)
def test_vectors_that_cannot_be_right_are_refused(
    store: EmbeddingStore, vectors: np.ndarray
) -> None:
    with pytest.raises(ArtifactError, match=r"expected \(1, 8\) finite numbers"):
        store.add(["a"], vectors)


def test_only_empty_texts_write_nothing(store: EmbeddingStore) -> None:
    assert store.add(["", ""], np.zeros((2, 8), np.float32)) is None
    np.testing.assert_array_equal(store.lookup(["", ""]), np.zeros((2, 8)))
    assert store.lookup([]).shape == (0, 8)


def test_a_shard_without_counts_has_zero_counts(store: EmbeddingStore) -> None:
    store.add(["a"], ENCODER.encode(["a"]))

    counts = store.count_tokens(["a"])

    assert counts.total.tolist() == counts.unknown.tolist() == [0]


def test_the_store_lies_in_the_artifact_unless_configured() -> None:
    assert store_path(TextConfig(), "runs/a/embeddings") == "runs/a/embeddings"
    assert store_path(TextConfig(store="s3://shared/vectors"), "x") == "s3://shared/vectors"


@settings(max_examples=25, deadline=None)
@given(
    shards=st.lists(st.lists(st.text(max_size=4), min_size=1, max_size=5), max_size=4),
    asked=st.lists(st.integers(0, 30), max_size=10),
)
def test_any_shards_and_any_question_agree_with_the_encoder(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[str]], asked: list[int]
) -> None:
    store = EmbeddingStore.create(str(tmp_path_factory.mktemp("store")), ENCODER.spec)
    for shard in shards:
        store.add(shard, ENCODER.encode(shard))
    known = ["", *(text for shard in shards for text in shard)]
    texts = [known[position % len(known)] for position in asked]

    np.testing.assert_array_equal(store.lookup(texts), ENCODER.encode(texts))


@pytest.mark.slow
def test_a_hundred_thousand_texts_are_looked_up_in_seconds(store: EmbeddingStore) -> None:
    import time

    texts = [f"text {number}" for number in range(100_000)]
    vectors = np.random.default_rng(0).standard_normal((100_000, 8)).astype(np.float32)
    for start in range(0, 100_000, 1000):
        store.add(texts[start : start + 1000], vectors[start : start + 1000])
    begin = time.monotonic()

    found = store.lookup(texts[::-1])

    assert time.monotonic() - begin < 5.0
    np.testing.assert_array_equal(found, vectors[::-1])
