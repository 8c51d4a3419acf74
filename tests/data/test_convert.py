"""Converters against pandas and against hand-made files with the real ones' dirt."""

import csv
from pathlib import Path

import numpy as np
import pytest

from mtrec import artifacts
from mtrec.data import convert, draws
from mtrec.errors import DataError


def write(folder: Path, files: dict[str, str], encoding: str = "utf-8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode(encoding))
    return folder


def read(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cold_splits(num_items: int, *, seed: int) -> dict[str, str]:
    """Give the split of items 1, 2, ...: 15 % of the draws are test, 10 % validation."""
    names = np.random.default_rng(seed).random(num_items)
    return {
        str(n): "train" if draw < 0.75 else "validation" if draw < 0.85 else "test"
        for n, draw in enumerate(names, start=1)
    }


# ---- MovieLens-100K -----------------------------------------------------------------------------


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    events = "".join(f"{n % 5 + 1}\t{n % 3 + 1}\t{n % 5 + 1}\t{880000000 + n}\n" for n in range(40))
    return write(
        tmp_path / "ml-100k",
        {
            "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            + events,
            "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:x\n"
            "1\tToy Story\t1995\tAnimation Children's Comedy\n"
            '2\tThe "Quoted", Film\tV\tunknown\n'
            "3\tShanghai Triad\t1995\tDrama\n",
            "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip:token\n"
            + "".join(f"{n}\t2{n}\tM\tother\t1234{n}\n" for n in range(1, 6)),
        },
    )


def test_movielens_keeps_its_rows_in_order_beside_their_split(
    movielens: Path, tmp_path: Path
) -> None:
    convert.movielens_100k_random(movielens, tmp_path / "out", seed=3)

    rows = read(tmp_path / "out", "interactions.csv")
    assert [int(row["timestamp"]) for row in rows] == [880000000 + n for n in range(40)]
    assert [row["split"] for row in rows] == draws.draw_split(40, seed=3).tolist()
    assert read(tmp_path / "out", "items.csv")[:2] == [
        {"item_id": "1", "title": "Toy Story", "year": "1995"}
        | {"genres": "Animation|Children's|Comedy"},
        {"item_id": "2", "title": 'The "Quoted", Film', "year": "V", "genres": "unknown"},
    ]
    assert read(tmp_path / "out", "users.csv")[4] == {
        **{"user_id": "5", "age": "25"},
        **{"gender": "M", "occupation": "other"},
    }


def test_movielens_by_item_splits_by_the_item_column(movielens: Path, tmp_path: Path) -> None:
    convert.movielens_100k_by_item(movielens, tmp_path / "out", seed=3)

    rows = read(tmp_path / "out", "interactions.csv")
    item = np.array([int(row["item_id"]) for row in rows])
    assert [r["split"] for r in rows] == draws.draw_split_by_item(item, seed=3).tolist()
    # 14, 13 and 13 rows of three films: round(3.5) = 4 (to even), round(3.25) = 3, twice.
    assert sum(row["split"] == "test" for row in rows) == 4 + 3 + 3


def test_movielens_with_cold_items_has_each_film_in_one_split(
    movielens: Path, tmp_path: Path
) -> None:
    expected = {"1": "train", "2": "test", "3": "validation"}
    assert cold_splits(3, seed=7) == expected

    convert.movielens_100k_cold_items(movielens, tmp_path / "out", seed=7)

    rows = read(tmp_path / "out", "interactions.csv")
    assert len(rows) == 40
    assert all(row["split"] == expected[row["item_id"]] for row in rows)


def test_users_who_are_left_out_are_nowhere_and_the_others_keep_their_splits(
    movielens: Path, tmp_path: Path
) -> None:
    convert.movielens_100k_random(movielens, tmp_path / "all", seed=3)
    convert.movielens_100k_random(movielens, tmp_path / "out", seed=3, without={"2", "5"})

    for name in ("interactions.csv", "users.csv"):
        everybody = read(tmp_path / "all", name)
        expected = [row for row in everybody if row["user_id"] not in ("2", "5")]
        assert read(tmp_path / "out", name) == expected
    assert read(tmp_path / "out", "items.csv") == read(tmp_path / "all", "items.csv")
    # Nor are tables of everybody taken for those.
    convert.movielens_100k_random(movielens, tmp_path / "all", seed=3, without={"2", "5"})
    one = artifacts.read_manifest(str(tmp_path / "all"), "tables")
    other = artifacts.read_manifest(str(tmp_path / "out"), "tables")
    assert one.content == other.content


def test_tables_are_written_once_and_anew_for_another_seed(movielens: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    convert.movielens_100k_random(movielens, out, seed=0)
    first = artifacts.read_manifest(str(out), "tables")
    convert.movielens_100k_random(movielens, out, seed=0)
    assert artifacts.read_manifest(str(out), "tables").id == first.id

    convert.movielens_100k_random(movielens, again, seed=0)
    assert artifacts.read_manifest(str(again), "tables").content == first.content
    convert.movielens_100k_random(movielens, out, seed=1)
    assert artifacts.read_manifest(str(out), "tables").content != first.content


def test_a_missing_or_broken_file_is_named_and_leaves_nothing(
    movielens: Path, tmp_path: Path
) -> None:
    with (movielens / "ml-100k.item").open("a") as file:
        file.write("4\ttoo few\n")
    with pytest.raises(DataError, match=r"ml-100k.item, line 5: 2 fields, expected 4"):
        convert.movielens_100k_random(movielens, tmp_path / "out", seed=0)
    assert not (tmp_path / "out").exists()

    (movielens / "ml-100k.user").unlink()
    with pytest.raises(DataError, match=r"lacks ml-100k.user; expected ml-100k.inter"):
        convert.movielens_100k_random(movielens, tmp_path / "out", seed=0)


# ---- hetrec2011-lastfm-2k -----------------------------------------------------------------------


@pytest.fixture
def hetrec(tmp_path: Path) -> Path:
    folder = tmp_path / "hetrec"
    # Listening pairs (u, a): user 1..6, artist 1..5, all but (6, 5).
    pairs = [(u, a) for u in range(1, 7) for a in range(1, 6) if (u, a) != (6, 5)]
    events = "".join(f"{u}\t{a}\t{10 ** (a - 1)}\r\n" for u, a in pairs)
    taggings = [(u, a, 10 * a + u) for u, a in pairs] + [(u, a, 99) for u, a in pairs]
    taggings += [(6, 5, 7), (1, 1, 99), (1, 77, 99)]
    write(
        folder,
        {
            "user_artists.dat": "userID\tartistID\tweight\r\n" + events,
            "artists.dat": "id\tname\turl\tpictureURL\n"
            + "".join(f'{a}\tDJ "Artist" ☆ {a}\turl\tpicture\n' for a in range(1, 6)),
            "user_friends.dat": "userID\tfriendID\r\n10\t2\r\n2\t10\r\n2\t3\r\n3\t2\r\n",
            "user_taggedartists.dat": "userID\tartistID\ttagID\tday\tmonth\tyear\n"
            + "".join(f"{u}\t{a}\t{t}\t1\t4\t2009\n" for u, a, t in taggings),
        },
    )
    tags = "".join(f"{tag}\tmúsica {tag}\r\n" for tag in range(100))
    write(folder, {"tags.dat": "tagID\ttagValue\r\n" + tags}, "iso-8859-1")
    return folder


def test_listening_counts_get_a_logarithm_and_the_split_of_their_row(
    hetrec: Path, tmp_path: Path
) -> None:
    convert.hetrec_lastfm(hetrec, tmp_path / "out", seed=0)

    rows = read(tmp_path / "out", "interactions.csv")
    assert [row["split"] for row in rows] == draws.draw_split(29, seed=0).tolist()
    # 10^(artist - 1) plays.
    assert all(float(row["log_plays"]) == int(row["item_id"]) - 1 for row in rows)
    items = read(tmp_path / "out", "items.csv")
    assert [item["name"] for item in items] == [f'DJ "Artist" ☆ {a}' for a in range(1, 6)]


def test_no_tagging_by_the_user_of_a_held_out_pair_is_in_a_text(
    hetrec: Path, tmp_path: Path
) -> None:
    convert.hetrec_lastfm(hetrec, tmp_path / "out", seed=0)

    split = {
        (row["user_id"], row["item_id"]): row["split"]
        for row in read(tmp_path / "out", "interactions.csv")
    }
    assert 0 < sum(name != "train" for name in split.values()) < 29
    for item in read(tmp_path / "out", "items.csv"):
        artist = int(item["item_id"])
        told = set(item["tags"].split(", ")) - {"música 99"}
        # Each pair has a tag of its own, 10 * artist + user.
        own = {f"música {10 * artist + u}" for u in range(1, 7)} & told
        assert own == {
            f"música {10 * artist + u}"
            for u in range(1, 7)
            if split.get((str(u), str(artist))) == "train"
        }
        # User 6 tagged artist 5 and never listened to it: nothing is told about an event.
        assert ("música 7" in told) == (artist == 5)


def test_a_cold_artists_text_has_no_tag_by_anybody_who_listens_to_it(
    hetrec: Path, tmp_path: Path
) -> None:
    convert.hetrec_lastfm_cold_items(hetrec, tmp_path / "out", seed=8)

    rows = read(tmp_path / "out", "interactions.csv")
    expected = cold_splits(5, seed=8)
    assert all(row["split"] == expected[row["item_id"]] for row in rows)
    assert set(expected.values()) == {"train", "validation", "test"}
    assert expected["5"] == "test"
    for item in read(tmp_path / "out", "items.csv"):
        artist = int(item["item_id"])
        told = set(item["tags"].split(", ")) - {""}
        own = {f"música {10 * artist + u}" for u in range(1, 7) if (u, artist) != (6, 5)}
        # User 6 tagged artist 5 and never listened to it: no event is told.
        strangers = {"música 7"} if artist == 5 else set()
        if expected[item["item_id"]] == "train":
            assert own | strangers <= told
        else:
            assert told == strangers


def test_listeners_who_are_left_out_have_no_row_no_tag_and_no_friend(
    hetrec: Path, tmp_path: Path
) -> None:
    convert.hetrec_lastfm(hetrec, tmp_path / "all", seed=0)
    convert.hetrec_lastfm(hetrec, tmp_path / "out", seed=0, without={"1", "10"})

    rows = read(tmp_path / "all", "interactions.csv")
    assert read(tmp_path / "out", "interactions.csv") == [r for r in rows if r["user_id"] != "1"]
    before, after = (read(tmp_path / name, "items.csv") for name in ("all", "out"))
    for item, left in zip(before, after, strict=True):
        # Each pair has a tag of its own, 10 * artist + user.
        own = f"música {10 * int(item['item_id']) + 1}"
        assert set(left["tags"].split(", ")) == set(item["tags"].split(", ")) - {own}
    assert (tmp_path / "out" / "friends.csv").read_text() == "user_id,friend_id\n2,3\n"
    # Nor are tables of everybody taken for those.
    convert.hetrec_lastfm(hetrec, tmp_path / "all", seed=0, without={"1", "10"})
    one = artifacts.read_manifest(str(tmp_path / "all"), "tables")
    other = artifacts.read_manifest(str(tmp_path / "out"), "tables")
    assert one.content == other.content


def test_tags_are_ordered_by_their_users_and_then_by_id_and_cut() -> None:
    taggings = [(str(user), "a", str(tag)) for tag in range(30) for user in range(tag % 3 + 1)]
    taggings += [("0", "a", "0")] * 5
    texts = convert.tag_texts(taggings, {str(tag): f"t{tag}" for tag in range(30)}, set())

    # Tags 2, 5, ... have three users each; the tenth of them is 29.
    assert texts == {"a": ", ".join(f"t{tag}" for tag in range(2, 30, 3))}


def test_friends_are_pairs_that_come_once(hetrec: Path, tmp_path: Path) -> None:
    convert.hetrec_lastfm(hetrec, tmp_path / "out", seed=0)

    assert (tmp_path / "out" / "friends.csv").read_text() == "user_id,friend_id\n2,3\n2,10\n"


def test_bytes_that_are_no_text_are_refused_by_name(hetrec: Path, tmp_path: Path) -> None:
    (hetrec / "artists.dat").write_bytes(b"id\tname\turl\tpictureURL\n1\t\xff\tu\tp\n")

    with pytest.raises(DataError, match=r"artists.dat is not utf-8 text"):
        convert.hetrec_lastfm(hetrec, tmp_path / "out", seed=0)


# ---- MovieLens-1M -------------------------------------------------------------------------------


def test_official_files_become_sequences_by_time_then_place(tmp_path: Path) -> None:
    # Film 50 has four ratings, one too few; user 9 rated film 1 last, the other five in one second.
    ratings = [(9, 1, 5, 978300900)] + [(9, film, 3, 978300001) for film in (7, 3, 50, 8, 2)]
    ratings += [(u, f, 4, 978300000 + f) for u in (1, 2, 3, 4) for f in (8, 7, 3, 2, 1)]
    ratings += [(u, 50, 1, 978309999) for u in (1, 2, 3)]
    source = write(
        tmp_path / "ml-1m",
        {
            "ratings.dat": "".join(f"{u}::{f}::{r}::{t}\n" for u, f, r, t in ratings),
            "users.dat": "".join(f"{u}::F::25::10::48067\n" for u in (1, 2, 3, 4, 9)),
            "movies.dat": "".join(
                f"{film}::Léon, No {film} (199{film % 10})::Crime|Drama\n"
                for film in (1, 2, 3, 7, 8, 50, 60)
            ),
        },
        "iso-8859-1",
    )

    convert.movielens_1m(source, tmp_path / "out")

    rows = read(tmp_path / "out", "interactions.csv")
    mine = [(row["item_id"], row["timestamp"], row["rating"]) for row in rows[:5]]
    assert [row["user_id"] for row in rows[:6]] == ["9"] * 5 + ["1"]
    assert mine == [
        *(("7", "1", "3"), ("3", "2", "3"), ("8", "3", "3"), ("2", "4", "3")),
        ("1", "5", "5"),
    ]
    items = read(tmp_path / "out", "items.csv")
    assert [item["item_id"] for item in items] == ["1", "2", "3", "7", "8"]
    assert items[0] == {
        **{"item_id": "1", "title": "Léon, No 1 (1991)"},
        **{"year": "1991", "genres": "Crime|Drama"},
    }
    assert read(tmp_path / "out", "users.csv")[-1] == {
        **{"user_id": "9", "gender": "F"},
        **{"age": "25", "occupation": "10"},
    }


def test_sequence_files_give_the_same_form_with_official_ids(tmp_path: Path) -> None:
    source = write(
        tmp_path / "sequences",
        {
            "sequences.txt": "1 2\n2 1 2\n",
            "items.tsv": "1\t1198\tRaiders (1981)\tAction\n2\t3552\tCaddyshack\tComedy\n",
            "users.tsv": "1\t5988\tM\t25\t15\n2\t5989\tF\t1\t10\n",
        },
    )

    convert.movielens_1m(source, tmp_path / "out")

    assert (tmp_path / "out" / "interactions.csv").read_text().splitlines() == [
        "user_id,item_id,timestamp",
        *("5988,1198,1", "5988,3552,2"),
        *("5989,3552,1", "5989,1198,2", "5989,3552,3"),
    ]
    assert [item["year"] for item in read(tmp_path / "out", "items.csv")] == ["1981", ""]


def test_sequences_of_other_items_are_refused(tmp_path: Path) -> None:
    source = write(
        tmp_path / "sequences",
        {"sequences.txt": "1 3\n", "items.tsv": "1\t9\tA\tB\n", "users.tsv": "1\t5\tM\t25\t15\n"},
    )

    with pytest.raises(DataError, match=r"sequences.txt, line 1: item 3"):
        convert.movielens_1m(source, tmp_path / "out")


def test_a_folder_with_neither_form_is_told_the_official_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks ratings.dat, movies.dat, users.dat"):
        convert.movielens_1m(tmp_path, tmp_path / "out")
