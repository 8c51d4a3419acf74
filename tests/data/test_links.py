"""Links: each once whatever its direction, split by a hash, and as arrays."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec.data.contract import PLACE
from mtrec.data.links import Links, clean_links, split_links


def rows(pairs: list[tuple[str, str]]) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array([a for a, _ in pairs], pa.string()),
            "friend_id": pa.array([b for _, b in pairs], pa.string()),
            PLACE: pa.array(range(len(pairs)), pa.int64()),
        }
    )


ids = st.sampled_from(["a", "b", "c", "Z", "é", "10", "9"])


@given(st.lists(st.tuples(ids, ids)))
def test_every_row_is_a_link_a_repetition_or_a_link_to_oneself(
    pairs: list[tuple[str, str]],
) -> None:
    links, aside, duplicates = clean_links(rows(pairs))

    # Oracle: sets, in the order of UTF-8 bytes.
    wanted = sorted(
        {tuple(sorted(pair, key=str.encode)) for pair in pairs if pair[0] != pair[1]},
        key=lambda pair: (pair[0].encode(), pair[1].encode()),
    )
    found = zip(
        links.column("user_id").to_pylist(), links.column("friend_id").to_pylist(), strict=True
    )
    assert list(found) == wanted
    assert aside.num_rows == sum(a == b for a, b in pairs)
    assert links.num_rows + aside.num_rows + duplicates == len(pairs)


def test_a_link_to_oneself_is_set_aside_with_its_reason() -> None:
    _, aside, _ = clean_links(rows([("a", "b"), ("c", "c")]))

    assert aside.column("_reason").to_pylist() == ["friend_id is the user itself"]
    assert aside.column(PLACE).to_pylist() == [1]


def test_the_split_depends_on_seed_and_ids_only() -> None:
    pairs = [(f"u{a:03d}", f"v{b:03d}") for a in range(60) for b in range(60)]
    links = clean_links(rows(pairs))[0]
    split = split_links(links, seed=3, validation=0.1, test=0.2)

    part = split_links(links.slice(1000, 500), seed=3, validation=0.1, test=0.2)
    assert part == split.slice(1000, 500)
    other = split_links(links, seed=4, validation=0.1, test=0.2)
    assert other.column("split") != split.column("split")
    shares = np.array([split.column("split").to_pylist().count(n) for n in ("validation", "test")])
    # 3,600 draws: three standard errors are .015 and .02.
    assert np.abs(shares / 3600 - [0.1, 0.2]).max() < 0.02


def test_links_are_positions_and_stay_symmetric() -> None:
    table = pa.table(
        {
            "user_id": ["a", "a", "b"],
            "friend_id": ["b", "c", "d"],
            "split": ["train", "test", "validation"],
        }
    )
    links = Links.from_table(table, pa.chunked_array([["a", "b"], ["c", "d"]]))

    assert links.pairs.tolist() == [[0, 1], [0, 2], [1, 3]]
    wanted = np.zeros((4, 4))
    wanted[0, 1] = wanted[1, 0] = wanted[1, 3] = wanted[3, 1] = 1.0
    assert links.before("test").adjacency().toarray().tolist() == wanted.tolist()
    assert links.of("test").pairs.tolist() == [[0, 2]]
    assert len(links.before("validation")) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_few_links_are_no_special_case(count: int) -> None:
    links, _, _ = clean_links(rows([("b", "a")] * count))

    split = split_links(links, seed=0, validation=0.1, test=0.1)
    assert split.num_rows == count
    assert Links.from_table(split, pa.array(["a", "b"])).adjacency().nnz == 2 * count
