import math

import pytest
from small_bundle import small_config

from mtrec.dataconfig import TimeColumn
from mtrec.errors import RequestError
from mtrec.query import (
    SCORE_KEYS,
    USER_KEYS,
    Limits,
    Query,
    QueryReader,
    read_id,
    read_ids,
    read_text,
    show,
)


@pytest.fixture
def reader() -> QueryReader:
    return QueryReader(small_config(), Limits(max_k=50, max_history=20))


def test_empty_request_has_the_defaults(reader: QueryReader) -> None:
    query = reader.read({})
    assert query == Query(context_categories={"device": None})


def test_integers_become_the_strings_that_mtrec_keeps(reader: QueryReader) -> None:
    query = reader.read({"user_id": 7, "exclude": [1, "1"], "history": [{"item_id": -3}]})
    assert (query.user_id, query.exclude) == ("7", ["1", "1"])
    assert query.history is not None
    assert (query.history[0].item_id, query.history[0].given_id) == ("-3", -3)


def test_events_are_sorted_by_time_only_if_all_have_one(reader: QueryReader) -> None:
    def order(*times: float | None) -> list[str]:
        history = [{"item_id": str(at), "timestamp": time} for at, time in enumerate(times)]
        return [event.item_id for event in reader.read({"history": history}).history or []]

    assert order(3, 1, 3, 2) == ["1", "3", "0", "2"]
    assert order(3, None, 1) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (12, 12.0),
        ("1970-01-01T00:01:00", 60.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1970-01-02", 86400.0),
    ],
)
def test_time_is_seconds_or_iso_text_in_utc(
    reader: QueryReader, given: object, seconds: float
) -> None:
    query = reader.read({"history": [{"item_id": "a", "timestamp": given}]})
    assert query.history is not None and query.history[0].timestamp == seconds


@pytest.mark.parametrize("given", [1_764_000_000_000, -1.1e12, math.inf])
def test_time_in_milliseconds_is_refused_by_name(reader: QueryReader, given: float) -> None:
    with pytest.raises(RequestError, match="seconds since 1970, not milliseconds"):
        reader.read({"history": [{"item_id": "a", "timestamp": given}]})


def test_missing_values_of_an_event_are_empty(reader: QueryReader) -> None:
    query = reader.read({"history": [{"item_id": "a", "device": "tv"}]})
    assert query.history is not None
    (event,) = query.history
    assert math.isnan(event.timestamp) and math.isnan(event.numbers["rating"])
    assert event.categories == {"device": "tv"}


def test_context_takes_the_context_columns_only(reader: QueryReader) -> None:
    query = reader.read({"context": {"hour": 3, "device": None}})
    assert query.context_numbers == {"hour": 3.0}
    assert query.context_categories == {"device": None}
    with pytest.raises(RequestError, match=r"context\.rating is not known"):
        reader.read({"context": {"rating": 3}})


def test_time_columns_of_an_event_follow_its_time_unless_told() -> None:
    config = small_config()
    interactions = config.data.interactions
    columns = {**interactions.columns, "day": TimeColumn(kind="time", part="weekday")}
    data = config.data.model_copy(
        update={"interactions": interactions.model_copy(update={"columns": columns})}
    )
    reader = QueryReader(config.model_copy(update={"data": data}), Limits(max_k=50, max_history=20))
    query = reader.read(
        {
            "history": [
                {"item_id": "a", "timestamp": "2026-11-24T17:30:00Z"},
                {"item_id": "b", "day": "sunday"},
                {"item_id": "c"},
            ],
            "context": {"day": "friday"},
        }
    )
    assert query.history is not None
    assert [event.categories["day"] for event in query.history] == ["tuesday", "sunday", None]
    assert query.context_categories["day"] == "friday"


def test_unknown_key_names_the_nearest(reader: QueryReader) -> None:
    with pytest.raises(RequestError, match='"exclude"'):
        reader.read({"exlude": []})


@pytest.mark.parametrize("key", ["filter", "diversity", "explain", "k", "exclude"])
def test_keys_that_have_no_say_are_refused(reader: QueryReader, key: str) -> None:
    assert reader.read({"user_id": 7, "weights": None}, known=SCORE_KEYS).user_id == "7"
    for known in (USER_KEYS, SCORE_KEYS):
        with pytest.raises(RequestError, match=f"{key} is not known"):
            reader.read({"user_id": 7, key: None}, known=known)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((None, "null"), (True, "true"), (False, "false"), (0, "0"), ("a", "'a'")),
        *(({"a": 1}, "an object of 1"), ([1, 2], "a list of 2")),
    ],
)
def test_values_are_shown_as_json_names_them(value: object, shown: str) -> None:
    assert show(value) == shown


def test_blank_text_is_no_text(reader: QueryReader) -> None:
    assert reader.read({"text": " \n"}).text is None
    assert reader.read({"text": " 毛衣 "}).text == "毛衣"
    with pytest.raises(RequestError, match="found none"):
        read_text(" ")


def test_ids_are_checked_one_by_one() -> None:
    assert read_ids([1, "b"], "ids") == ["1", "b"]
    with pytest.raises(RequestError) as caught:
        read_ids(["a", 1.0], "ids")
    assert caught.value.field == "ids.1"


def test_message_shows_little_of_a_huge_value() -> None:
    with pytest.raises(RequestError) as caught:
        read_id(["x" * 10_000], "user_id")
    assert str(caught.value) == "user_id: expected a string or an integer, found a list of 1"
