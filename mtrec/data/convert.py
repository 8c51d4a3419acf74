"""Public data sets as plain tables, split the way that published and own figures were split.

Each converter reads the files as their authors publish them and writes UTF-8 CSV tables for
`data.root`, whole or not at all; equal input and seed write equal bytes, and what is there already
is left alone. The splits are the draws of `draws.py`. Cold items are a split of their own; cold
users are left out of the tables. `jobs/quality.py` calls these.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtrec import artifacts, storage
from mtrec.data.draws import (
    COLD_CUTS,
    RANDOM_CUTS,
    Splits,
    draw_split,
    draw_split_by_item,
    draw_split_of_items,
)
from mtrec.data.histories import SPLITS
from mtrec.data.sources import MOVIELENS_FILES
from mtrec.errors import DataError

HETREC_FILES = (
    *("user_artists.dat", "artists.dat", "user_friends.dat"),
    *("tags.dat", "user_taggedartists.dat"),
)
MOVIELENS_1M_FILES = ("ratings.dat", "movies.dat", "users.dat")
SEQUENCE_FILES = ("sequences.txt", "items.tsv", "users.tsv")

MAX_TAGS = 10
"""Tags in an artist's text."""
MIN_EVENTS = 5
"""MovieLens-1M: users and films with fewer ratings are left out, as in SASRec's file."""

_FORM = 1
"""Part of every key: raise it when a converter writes something else."""
_YEAR = re.compile(r"\((\d{4})\)\s*$")

Rows = Iterable[Sequence[object]]
Draw = Callable[[NDArray[np.int64]], Splits]
"""From the item of each row (N,) to the rows' splits (N,)."""
Tables = dict[str, tuple[Sequence[str], Rows]]
"""File name -> header and rows."""


# ---- MovieLens-100K -----------------------------------------------------------------------------


def movielens_100k_random(
    source: str | Path,
    folder: str | Path,
    *,
    seed: int,
    cuts: tuple[float, float] = RANDOM_CUTS,
    without: AbstractSet[str] = frozenset(),
) -> None:
    """Write MovieLens-100K with a random split.

    Args:
        source: folder with `sources.MOVIELENS_FILES`.
        folder: receives `interactions.csv` (user_id, item_id, rating, timestamp, split),
            `items.csv` (item_id, title, year, genres) and `users.csv` (user_id, age, gender,
            occupation).
        seed: of `draw_split`.
        cuts: of `draw_split`.
        without: ids of users that are left out of all tables; the others' splits stay.

    Raises:
        DataError: a file is missing or is not what it should be.
    """

    def draw(item: NDArray[np.int64]) -> Splits:
        return draw_split(len(item), seed=seed, cuts=cuts)

    _movielens_100k(Path(source), Path(folder), ["random", seed, *cuts], draw, without)


def movielens_100k_cold_items(source: str | Path, folder: str | Path, *, seed: int) -> None:
    """Write MovieLens-100K with some films' ratings all in test, and others' all in validation.

    Args:
        source: as for `movielens_100k_random`.
        folder: as for `movielens_100k_random`.
        seed: of `draw_split_of_items`.

    Raises:
        DataError: a file is missing or is not what it should be.
    """
    draw = partial(draw_split_of_items, seed=seed)
    _movielens_100k(Path(source), Path(folder), ["cold items", seed, *COLD_CUTS], draw)


def movielens_100k_by_item(source: str | Path, folder: str | Path, *, seed: int) -> None:
    """Write MovieLens-100K with a quarter of each film's ratings as test.

    Args:
        source: as for `movielens_100k_random`.
        folder: as for `movielens_100k_random`.
        seed: of `draw_split_by_item`: it decides validation only.

    Raises:
        DataError: a file is missing or is not what it should be.
    """

    def draw(item: NDArray[np.int64]) -> Splits:
        return draw_split_by_item(item, seed=seed)

    _movielens_100k(Path(source), Path(folder), ["by item", seed], draw)


def _movielens_100k(
    source: Path,
    folder: Path,
    settings: list[object],
    draw: Draw,
    without: AbstractSet[str] = frozenset(),
) -> None:
    def tables() -> Tables:
        events, items, users = (
            list(_rows(source / name, "\t", num_fields, header=True))
            for name, num_fields in zip(MOVIELENS_FILES, (4, 4, 5), strict=True)
        )
        split = draw(np.array([int(event[1]) for event in events]))
        return {
            "interactions.csv": (
                ("user_id", "item_id", "rating", "timestamp", "split"),
                (
                    [*event, name]
                    for event, name in zip(events, split.tolist(), strict=True)
                    if event[0] not in without
                ),
            ),
            "items.csv": (
                ("item_id", "title", "year", "genres"),
                ([*item[:3], "|".join(item[3].split(" "))] for item in items),
            ),
            "users.csv": (
                ("user_id", "age", "gender", "occupation"),
                (user[:4] for user in users if user[0] not in without),
            ),
        }

    settings = ["movielens-100k", *settings, *sorted(without)]
    _write(folder, source, MOVIELENS_FILES, settings, tables)


# ---- hetrec2011-lastfm-2k -----------------------------------------------------------------------


def hetrec_lastfm(
    source: str | Path,
    folder: str | Path,
    *,
    seed: int,
    without: AbstractSet[str] = frozenset(),
) -> None:
    """Write hetrec2011-lastfm-2k (Cantador et al. 2011) with a random 8:1:1 split.

    An artist's tags are those that most users gave, at most `MAX_TAGS`; who tagged an artist also
    listened to it in every fifth pair, so taggings by the user of a held-out pair do not count.

    Args:
        source: folder with `HETREC_FILES`.
        folder: receives `interactions.csv` (user_id, item_id, plays, log_plays, split), `items.csv`
            (item_id, name, tags) and `friends.csv` (user_id, friend_id; each pair once, the smaller
            id first).
        seed: of `draw_split`.
        without: ids of users that are left out of all tables, their tags and friends too; the
            others' splits stay.

    Raises:
        DataError: a file is missing or is not what it should be.
    """

    def draw(item: NDArray[np.int64]) -> Splits:
        return draw_split(len(item), seed=seed)

    _hetrec_lastfm(Path(source), Path(folder), [seed], draw, without)


def hetrec_lastfm_cold_items(source: str | Path, folder: str | Path, *, seed: int) -> None:
    """Write hetrec2011-lastfm-2k with some artists' rows all in test, others' all in validation.

    Such an artist's text has no tag by anybody who listens to it: all those pairs are held out.

    Args:
        source: as for `hetrec_lastfm`.
        folder: as for `hetrec_lastfm`.
        seed: of `draw_split_of_items`.

    Raises:
        DataError: a file is missing or is not what it should be.
    """
    draw = partial(draw_split_of_items, seed=seed)
    _hetrec_lastfm(Path(source), Path(folder), ["cold items", seed, *COLD_CUTS], draw)


def _hetrec_lastfm(
    source: Path,
    folder: Path,
    settings: list[object],
    draw: Draw,
    without: AbstractSet[str] = frozenset(),
) -> None:
    def tables() -> Tables:
        events = list(_rows(source / "user_artists.dat", "\t", 3, header=True))
        split = draw(np.array([int(event[1]) for event in events])).tolist()
        held_out = {
            (event[0], event[1])
            for event, name in zip(events, split, strict=True)
            if name != SPLITS[0]
        }
        tags = dict(_rows(source / "tags.dat", "\t", 2, header=True, encoding="iso-8859-1"))
        taggings = (
            (user, artist, tag)
            for user, artist, tag, *_ in _rows(
                source / "user_taggedartists.dat", "\t", 6, header=True
            )
            if user not in without
        )
        texts = tag_texts(taggings, tags, held_out)
        friends = {
            tuple(sorted((int(one), int(other))))
            for one, other in _rows(source / "user_friends.dat", "\t", 2, header=True)
            if not without & {one, other}
        }
        return {
            "interactions.csv": (
                ("user_id", "item_id", "plays", "log_plays", "split"),
                (
                    [user, artist, plays, f"{np.log10(int(plays)):.6f}", name]
                    for (user, artist, plays), name in zip(events, split, strict=True)
                    if user not in without
                ),
            ),
            "items.csv": (
                ("item_id", "name", "tags"),
                (
                    [artist, name, texts.get(artist, "")]
                    for artist, name, *_ in _rows(source / "artists.dat", "\t", 4, header=True)
                ),
            ),
            "friends.csv": (("user_id", "friend_id"), sorted(friends)),
        }

    _write(folder, source, HETREC_FILES, ["hetrec-lastfm", *settings, *sorted(without)], tables)


def tag_texts(
    taggings: Iterable[tuple[str, str, str]],
    tags: Mapping[str, str],
    held_out: set[tuple[str, str]],
) -> dict[str, str]:
    """Give each tagged artist's text: its tags by number of users who gave them, then by id.

    >>> tag_texts([("1", "9", "3"), ("2", "9", "4")], {"3": "rock", "4": "pop"}, {("2", "9")})
    {'9': 'rock'}

    Args:
        taggings: (user, artist, tag) ids; one that comes twice counts once.
        tags: id -> text.
        held_out: (user, artist) pairs whose taggings must not be known.
    """
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for user, artist, tag in set(taggings):
        if (user, artist) not in held_out and tag in tags:
            given[artist][tag] += 1
    return {
        artist: ", ".join(
            tags[tag] for tag in sorted(count, key=lambda tag: (-count[tag], int(tag)))[:MAX_TAGS]
        )
        for artist, count in given.items()
    }


# ---- MovieLens-1M -------------------------------------------------------------------------------


def movielens_1m(source: str | Path, folder: str | Path) -> None:
    """Write MovieLens-1M as sequences: each event's time is its place in the user's history.

    Leave-last-out then has no ties. From the official files, a user's events are ordered by time,
    of equal times by place in the file, and users and films with fewer than `MIN_EVENTS` ratings
    are left out; both as in SASRec's preprocessing. Sequence files are in that order already.

    Args:
        source: folder with `MOVIELENS_1M_FILES`, or with `SEQUENCE_FILES` (one user a line, numbers
            of items; items and users with their numbers and official ids).
        folder: receives `interactions.csv` (user_id, item_id, timestamp and, from the official
            files, rating), `items.csv` (item_id, title, year, genres) and `users.csv` (user_id,
            gender, age, occupation), with the official ids.

    Raises:
        DataError: a file is missing or is not what it should be.
    """
    source = Path(source)
    # A folder with neither is told what the official files are called.
    is_official = (source / "ratings.dat").is_file() or not (source / "sequences.txt").is_file()
    files = MOVIELENS_1M_FILES if is_official else SEQUENCE_FILES

    def tables() -> Tables:
        header, events, items, users = (_official_1m if is_official else _sequences_1m)(source)
        return {
            "interactions.csv": (header, events),
            "items.csv": (
                ("item_id", "title", "year", "genres"),
                ([item, title, _year(title), genres] for item, title, genres in items),
            ),
            "users.csv": (("user_id", "gender", "age", "occupation"), users),
        }

    _write(Path(folder), source, files, ["movielens-1m"], tables)


_Parts = tuple[Sequence[str], Rows, Iterable[Sequence[str]], Rows]
"""Header of the interactions, their rows, items (id, title, genres), users."""


def _official_1m(source: Path) -> _Parts:
    ratings = list(_rows(source / "ratings.dat", "::", 4))
    of_user = Counter(row[0] for row in ratings)
    of_item = Counter(row[1] for row in ratings)
    histories: dict[str, list[list[str]]] = defaultdict(list)
    for row in ratings:
        if of_user[row[0]] >= MIN_EVENTS and of_item[row[1]] >= MIN_EVENTS:
            histories[row[0]].append(row)
    events = (
        (user, item, place, rating)
        for history in histories.values()
        for place, (user, item, rating, _) in enumerate(
            sorted(history, key=lambda row: int(row[3])), start=1
        )
    )
    movies = _rows(source / "movies.dat", "::", 3, encoding="iso-8859-1")
    films = (row for row in movies if of_item[row[0]] >= MIN_EVENTS)
    people = (row[:4] for row in _rows(source / "users.dat", "::", 5) if row[0] in histories)
    return ("user_id", "item_id", "timestamp", "rating"), events, films, people


def _sequences_1m(source: Path) -> _Parts:
    items = list(_rows(source / "items.tsv", "\t", 4))
    users = list(_rows(source / "users.tsv", "\t", 5))
    item_id = {number: item for number, item, *_ in items}
    user_id = {number: user for number, user, *_ in users}
    path = source / "sequences.txt"

    def events() -> Iterator[Sequence[object]]:
        for number, line in enumerate(_lines(path), start=1):
            for place, item in enumerate(line.split(), start=1):
                if str(number) not in user_id or item not in item_id:
                    raise DataError(
                        f"{path}, line {number}: item {item} or this line's user is not in "
                        "items.tsv or users.tsv\ntake all three files from the same place"
                    )
                yield user_id[str(number)], item_id[item], place

    return (
        ("user_id", "item_id", "timestamp"),
        events(),
        [row[1:] for row in items],
        [row[1:] for row in users],
    )


def _year(title: str) -> str:
    found = _YEAR.search(title)
    return found[1] if found else ""


# ---- files --------------------------------------------------------------------------------------


def _write(
    folder: Path,
    source: Path,
    files: Sequence[str],
    settings: list[object],
    tables: Callable[[], Tables],
) -> None:
    """Write tables as an artifact, unless it is there and made from the same bytes."""
    missing = [name for name in files if not (source / name).is_file()]
    if missing:
        raise DataError(f"{source} lacks {', '.join(missing)}; expected {', '.join(files)}")
    hashes = [storage.hash_file(str(source / name)) for name in files]
    key = storage.hash_values("convert", _FORM, settings, hashes)
    manifest = artifacts.find_manifest(str(folder))
    if manifest is not None and manifest.key == key:
        artifacts.verify(str(folder), manifest)
        return
    with artifacts.write_artifact(str(folder), kind="tables", key=key) as writer:
        for name, (header, rows) in tables().items():
            with Path(writer.join(name)).open("w", encoding="utf-8", newline="") as file:
                out = csv.writer(file, lineterminator="\n")
                out.writerow(header)
                out.writerows(rows)


def _rows(
    path: Path, delimiter: str, num_fields: int, *, header: bool = False, encoding: str = "utf-8"
) -> Iterator[list[str]]:
    """Yield the fields of each line; quotes mean nothing in these files."""
    for number, line in enumerate(_lines(path, encoding), start=1):
        fields = line.split(delimiter)
        if len(fields) != num_fields:
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields, expected {num_fields}\n"
                "take the file as its authors publish it"
            )
        if number > 1 or not header:
            yield fields


def _lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yield lines without their ends; a carriage return belongs to the end."""
    try:
        with path.open(encoding=encoding, newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {encoding} text: {error}") from error
