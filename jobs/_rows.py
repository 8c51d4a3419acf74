"""The rows of the quality table: protocols, where their data is, and what is asked of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from _cold_users import TRAINED_ON
from _seeds import Goal

from mtrec.data import convert, draws, sources
from mtrec.errors import ConfigError, DataError
from mtrec.harm import TWIN

Find = Callable[[Path | None], Path]
Convert = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the model, taken out or exchanged.

    Attributes:
        name: what the row then is, as in the table.
        overrides: of the row's configuration.
        tasks: those whose figures shall show what it is worth.
    """

    name: str
    overrides: tuple[str, ...]
    tasks: tuple[str, ...] = ("retrieval",)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table, or several: a protocol and what is asked of it.

    Attributes:
        name: as in the table.
        protocol: the data and how it is split, in a few words.
        config: name of the file in `jobs/configs/quality/`; rows that name the same share its runs.
        find: gives the folder of the data below `--data`, or raises DataError.
        convert: writes the tables that the configuration reads: source, target, seed and, for cold
            users, `without` (ids of users); None: it reads the source.
        goals: the figures.
        seeds: how many, unless `--seeds` says otherwise: as many as the recorded table has. Five
            folds are five trainings, ten folds of users eleven.
        kind: where the figures come from: the run's report, its twins, models that have not seen
            the users who ask, or the run on validation beside itself without its parts.
        parts: of the kind `parts`, one run each.
    """

    name: str
    protocol: str
    config: str
    find: Find
    convert: Convert | None
    goals: tuple[Goal, ...]
    seeds: int = 3
    kind: Literal["report", "twins", "cold_users", "parts"] = "report"
    parts: tuple[Part, ...] = ()


def chosen_rows(names: str | None) -> list[Row]:
    """Give the rows that a comma-separated list names, in the table's order.

    Raises:
        ConfigError: there is no such row.
    """
    if names is None:
        return list(ROWS)
    wanted = {name.strip().lower() for name in names.split(",") if name.strip()}
    known = {row.name.lower() for row in ROWS}
    if not wanted or not wanted <= known:
        unknown = ", ".join(sorted(wanted - known)) or "nothing"
        raise ConfigError(f"--rows names {unknown}; there are {', '.join(r.name for r in ROWS)}")
    return [row for row in ROWS if row.name.lower() in wanted]


# ---- data ---------------------------------------------------------------------------------------


def find_movielens_100k(data: Path | None) -> Path:
    """Give MovieLens-100K: `ml-100k/` in the data folder, else fetched into the cache."""
    if data is not None and (data / "ml-100k" / sources.MOVIELENS_FILES[0]).is_file():
        return data / "ml-100k"
    return Path(sources.movielens_100k(sources.cache_folder()))


def find_folder(data: Path | None, *names: str) -> Path:
    """Give the first of some folders that the data folder has.

    Raises:
        DataError: it has none of them.
    """
    for name in names:
        if data is not None and (data / name).is_dir():
            return data / name
    where = f"{data} has no" if data is not None else "without --data there is no"
    raise DataError(f"{where} {' or '.join(f'{name}/' for name in names)}")


def find_hetrec(data: Path | None) -> Path:
    """Give hetrec2011-lastfm-2k."""
    return find_folder(data, "hetrec2011-lastfm-2k")


def find_movielens_1m(data: Path | None) -> Path:
    """Give MovieLens-1M, the official files before the sequences."""
    return find_folder(data, "ml-1m", "ml-1m-sequences")


def _random(
    source: Path,
    folder: Path,
    seed: int,
    *,
    cuts: tuple[float, float],
    without: frozenset[str] = frozenset(),
) -> None:
    convert.movielens_100k_random(source, folder, seed=seed, cuts=cuts, without=without)


def _cold_films(source: Path, folder: Path, seed: int) -> None:
    convert.movielens_100k_cold_items(source, folder, seed=seed)


def _by_item(source: Path, folder: Path, seed: int) -> None:
    convert.movielens_100k_by_item(source, folder, seed=seed)


def _hetrec(
    source: Path, folder: Path, seed: int, *, without: frozenset[str] = frozenset()
) -> None:
    convert.hetrec_lastfm(source, folder, seed=seed, without=without)


def _cold_artists(source: Path, folder: Path, seed: int) -> None:
    convert.hetrec_lastfm_cold_items(source, folder, seed=seed)


def _movielens_1m(source: Path, folder: Path, _seed: int) -> None:
    convert.movielens_1m(source, folder)


# ---- rows ---------------------------------------------------------------------------------------

COLD_ITEMS = (Goal("retrieval", "recall@10", beat=("text_nearest",), aim_over=("ials_text",)),)
COLD_USERS = (Goal("retrieval", "ndcg@10", at_least=0.90, aim=0.95, beside=TRAINED_ON),)

TEXT = (
    Part("hashed words", ("text.encoder=hashing",)),
    Part("no text", ("text.item_template=null", "text.behaviour=null")),
)
NETWORK = (
    Part("no id-row dropout", ("model.id_dropout=0",)),
    Part("no moving average", ("train.ema_decay=0",)),
)
NO_IALS = Part("no factors of iALS", ("model.ials=null",))
TERMS = (
    Part("no item-item term", ("model.item_item=null",)),
    Part("events that count alike", ("model.item_item.amount=null",)),
    NO_IALS,
)
TERMS_IN_ORDER = (Part("no next-item term", ("model.next_item=null",)), NO_IALS)
EXPERTS = tuple(
    Part(f"{name} experts", (f"model.experts={{kind: {name}}}",), ("rating", "like"))
    for name in ("mmoe", "ple")
)
METRICS = {"retrieval": "ndcg@10", "rating": "rmse", "like": "auc"}


def _parts(
    name: str, protocol: str, config: str, find: Find, source: Convert | None, *parts: Part
) -> Row:
    """Give the row that shows what the parts of another row's model are worth."""
    goals = tuple(
        Goal(task, METRICS[task], beside=part.name) for part in parts for task in part.tasks
    )
    return Row(
        name,
        f"{protocol}, on validation",
        config,
        find,
        source,
        goals,
        seeds=1,
        kind="parts",
        parts=parts,
    )


ROWS = (
    Row(
        "P1b",
        "ML-100K, 5 random folds",
        "p1b",
        find_movielens_100k,
        None,
        (
            Goal("rating", "rmse", at_least=0.905, aim=0.895),
            Goal("rating", "mae", at_least=0.712, aim=0.705),
        ),
        seeds=1,
    ),
    Row(
        "P3",
        "ML-100K, random 8:1:1",
        "p3",
        find_movielens_100k,
        partial(_random, cuts=draws.RANDOM_CUTS),
        (Goal("retrieval", "ndcg@10", beat=("ease", "ials"), gain=0.03),),
        seeds=5,
    ),
    Row(
        "P3b",
        "ML-100K, random 80:20",
        "p3b",
        find_movielens_100k,
        partial(_random, cuts=(0.72, 0.8)),
        (Goal("retrieval", "ndcg@10", beat=("ease",), gain=0.03),),
    ),
    Row(
        "P4",
        "ML-100K, 75:25 by item, seed 42",
        "p4",
        find_movielens_100k,
        _by_item,
        (Goal("retrieval", "ndcg@10", at_least=0.4836, aim=0.50),),
    ),
    Row(
        "P5",
        "ML-100K, leave last out, seeded ties",
        "p5",
        find_movielens_100k,
        None,
        (
            Goal("retrieval", "hr@10", at_least=0.20, aim=0.22),
            Goal("retrieval", "ndcg@10", at_least=0.105, aim=0.118),
        ),
    ),
    Row(
        "P6",
        "ML-1M, leave last out",
        "p6",
        find_movielens_1m,
        _movielens_1m,
        (
            Goal("retrieval", "hr@10", at_least=0.305, aim=0.320),
            Goal("retrieval", "ndcg@10", at_least=0.175, aim=0.186),
        ),
        seeds=1,
    ),
    Row(
        "P8",
        "hetrec-lastfm, random 8:1:1",
        "p8",
        find_hetrec,
        _hetrec,
        (
            Goal("retrieval", "recall@10", at_least=0.2189, aim=0.235, aim_over=("ease", "ials")),
            Goal("retrieval", "ndcg@10", at_least=0.2032, aim=0.22, aim_over=("ease", "ials")),
            Goal("plays", "rmse"),
        ),
        seeds=5,
    ),
    Row(
        "P11",
        "hetrec-lastfm friends, a tenth of the links",
        "p8",
        find_hetrec,
        _hetrec,
        (
            Goal("friends", "recall@10", at_least=0.194, aim=0.22, aim_over=("adamic_adar",)),
            Goal("friends", "ndcg@10", at_least=0.140, aim=0.155, aim_over=("adamic_adar",)),
        ),
        seeds=5,
    ),
    Row(
        "P12",
        "ML-100K, 5 random folds, like = rating >= 4",
        "p1b",
        find_movielens_100k,
        None,
        (Goal("like", "auc", at_least=0.79, aim=0.81),),
        seeds=1,
    ),
    Row(
        "C1",
        "ML-100K, 15 % of the items cold, ranked among themselves",
        "c1",
        find_movielens_100k,
        _cold_films,
        COLD_ITEMS,
    ),
    Row(
        "C1h",
        "hetrec-lastfm, 15 % of the items cold, ranked among themselves",
        "c1h",
        find_hetrec,
        _cold_artists,
        COLD_ITEMS,
    ),
    Row(
        "C2",
        "ML-100K, every user cold once, history in the request",
        "c2",
        find_movielens_100k,
        partial(_random, cuts=draws.RANDOM_CUTS),
        COLD_USERS,
        seeds=1,
        kind="cold_users",
    ),
    Row(
        "C2h",
        "hetrec-lastfm, every user cold once, history in the request",
        "c2h",
        find_hetrec,
        _hetrec,
        COLD_USERS,
        seeds=1,
        kind="cold_users",
    ),
    Row(
        "M1",
        "ML-100K, random 8:1:1, tasks together or alone",
        "p3",
        find_movielens_100k,
        partial(_random, cuts=draws.RANDOM_CUTS),
        (
            Goal("retrieval", "ndcg@10", beside=TWIN, max_loss=0.02),
            Goal("rating", "rmse", beside=TWIN, max_loss=0.02),
            Goal("like", "auc", beside=TWIN, max_loss=0.02),
        ),
        seeds=5,
        kind="twins",
    ),
    Row(
        "M1h",
        "hetrec-lastfm, random 8:1:1, tasks together or alone",
        "p8",
        find_hetrec,
        _hetrec,
        (
            Goal("retrieval", "ndcg@10", beside=TWIN, max_loss=0.02),
            Goal("plays", "rmse", beside=TWIN, max_loss=0.02),
            Goal("friends", "ndcg@10", beside=TWIN, max_loss=0.02),
        ),
        seeds=5,
        kind="twins",
    ),
    _parts(
        "A1",
        "ML-100K, leave last out",
        "p5",
        find_movielens_100k,
        None,
        *(*TEXT, *NETWORK, *EXPERTS, *TERMS_IN_ORDER),
    ),
    _parts(
        "A2",
        "ML-100K, random 8:1:1",
        "p3",
        find_movielens_100k,
        partial(_random, cuts=draws.RANDOM_CUTS),
        *(*TEXT, *NETWORK, *TERMS),
    ),
    _parts(
        "A3",
        "ML-100K, fold 1 of 5",
        "p1b",
        find_movielens_100k,
        None,
        Part("no factorised part", ("model.factors=null",), ("rating", "like")),
    ),
    _parts(
        "A4",
        "ML-100K, 15 % of the items cold",
        "c1",
        find_movielens_100k,
        _cold_films,
        *(*TEXT, *NETWORK, NO_IALS),
    ),
    _parts(
        "A5",
        "hetrec-lastfm, 15 % of the items cold",
        "c1h",
        find_hetrec,
        _cold_artists,
        *(*TEXT, *NETWORK, NO_IALS),
    ),
)
