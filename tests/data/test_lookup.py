"""Tables read whole: one row an id, every link once, everything else told."""

from pathlib import Path

import pyarrow as pa
import pytest

from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.data import readers
from mtrec.data.accounts import Accounts
from mtrec.data.lookup import all_users, read_links, read_lookup
from mtrec.errors import DataError


def config_of(folder: Path) -> Config:
    return parse_config(
        {
            "data": {
                "root": str(folder),
                "interactions": {"path": "log.csv"},
                "users": {"path": "users.csv", "columns": {"age": {"kind": "number"}}},
                "social": {"path": "links.csv"},
                "quality": {"max_rejected_fraction": 0.9},
            },
            "tasks": [{"name": "next", "kind": "retrieval"}, {"name": "who", "kind": "social"}],
        }
    )


def accounts_of(config: Config, folder: Path) -> Accounts:
    names = {name: {0: f"{name}.csv"} for name in ("users", "social")}
    return Accounts(config, str(folder / "rejected"), names)


def test_users_are_those_of_the_table_and_those_who_have_events() -> None:
    table = pa.table({"user_id": ["b", "c"], "age": [1.0, 2.0]})
    seen = pa.chunked_array([["d", "b"], ["a", "d"]])

    assert all_users(table, seen).to_pydict() == {
        "user_id": ["a", "b", "c", "d"],
        "age": [None, 1.0, 2.0, None],
    }
    assert all_users(None, seen).to_pydict() == {"user_id": ["a", "b", "d"]}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(("keep", "age"), [("last", 3.0), ("first", 1.0), ("mean", 2.0)])
def test_of_rows_with_one_id_one_stays(tmp_path: Path, keep, age: float) -> None:
    (tmp_path / "users.csv").write_text("user_id,age\nv,7\nu,1\n,5\nu,3\n")
    config = config_of(tmp_path)
    accounts, table = accounts_of(config, tmp_path), config.data.users
    assert table is not None

    found = read_lookup("users", table, readers.plan(table, str(tmp_path)), keep, accounts)

    assert found.to_pydict() == {"user_id": ["u", "v"], "age": [age, 7.0]}
    told = accounts.report["tables"]["users"]
    assert (told["read"], told["kept"], told["duplicates"], told["rejected"]) == (4, 2, 1, 1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_links_are_of_known_users_and_each_is_there_once(tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_text("user_id,friend_id\nb,a\na,b\na,x\na,a\nc,a\n")
    config = config_of(tmp_path)
    assert config.data.social is not None
    accounts = accounts_of(config, tmp_path)
    pieces = readers.plan(config.data.social, str(tmp_path))

    links = read_links(config, pieces, pa.table({"user_id": ["a", "b", "c"]}), accounts)

    pairs = zip(links["user_id"].to_pylist(), links["friend_id"].to_pylist(), strict=True)
    assert {frozenset(pair) for pair in pairs} == {frozenset("ab"), frozenset("ac")}
    told = accounts.report["tables"]["social"]
    assert (told["read"], told["kept"], told["duplicates"], told["rejected"]) == (5, 2, 1, 2)
    assert sum(accounts.report["links"].values()) == 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    for name, head in (("users", "user_id,age\n"), ("links", "user_id,friend_id\n")):
        (tmp_path / f"{name}.csv").write_text(head)
    config = config_of(tmp_path)
    accounts, users, social = accounts_of(config, tmp_path), config.data.users, config.data.social
    assert users is not None and social is not None

    with pytest.raises(DataError, match="holds no rows"):
        read_lookup("users", users, readers.plan(users, str(tmp_path)), "last", accounts)
    with pytest.raises(DataError, match="holds no rows"):
        read_links(config, readers.plan(social, str(tmp_path)), None, accounts)
