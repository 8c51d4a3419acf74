"""One request to a recommender, checked: from JSON-like values to typed ones.

`Recommender` reads every request through here, whether it came over HTTP or from Python, so that
both are checked alike. Whatever is wrong is a `RequestError` that names the field. Pure: it knows
the configuration, not the catalogue; unknown ids are the recommender's business.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from mtrec.config import Config
from mtrec.data.columns import time_part
from mtrec.dataconfig import Column, TimeColumn
from mtrec.errors import RequestError

MAX_TEXT_CHARACTERS = 20_000
"""Longer request texts are refused; encoders cut texts long before."""

_LARGEST = 1e12  # far above any rating or price, far below what float32 arithmetic can square
_LARGEST_SECONDS = 1e12
_SHOWN = 60
USER_KEYS = ("user_id", "history", "text", "context")
"""Keys of a request that say who asks, and when."""
SCORE_KEYS = (*USER_KEYS, "weights")
"""Keys of a request that have a say in what the tasks say of given items."""
REQUEST_KEYS = (
    *SCORE_KEYS,
    *("k", "exclude", "include_seen", "filter", "diversity", "explain"),
)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a request's history.

    Attributes:
        item_id: as mtrec writes ids.
        given_id: as the request wrote it.
        timestamp: seconds since 1970; NaN where not given.
        numbers: column -> value; NaN where not given.
        categories: column -> value; None where not given.
    """

    item_id: str
    given_id: str | int
    timestamp: float
    numbers: dict[str, float]
    categories: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Query:
    """A request whose fields have the right types and bounds; `/openapi.json` describes them."""

    user_id: str | None = None
    history: list[Event] | None = None
    text: str | None = None
    k: int = 10
    exclude: list[str] = field(default_factory=list)
    include_seen: bool = False
    weights: dict[str, float] | None = None
    filter: object = None
    diversity: float = 0.0
    context_numbers: dict[str, float] = field(default_factory=dict)
    context_categories: dict[str, str | None] = field(default_factory=dict)
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest k and the longest history that a request may have."""

    max_k: int
    max_history: int


class QueryReader:
    """Check requests against a configuration and limits."""

    def __init__(self, config: Config, limits: Limits) -> None:
        self._limits = limits
        self._tasks = [task.name for task in config.tasks if task.kind != "social"]
        columns = config.data.interactions.columns
        self._numbers = {name: c for name, c in columns.items() if c.kind == "number"}
        self._categories = {n: c for n, c in columns.items() if c.kind in ("category", "time")}

    def read(self, request: object, *, known: Sequence[str] = REQUEST_KEYS) -> Query:
        """Check one request.

        Args:
            request: JSON-like; keys as in `POST /v1/recommend`; a null counts as not given.
            known: the keys that it may have, some of these.

        Raises:
            RequestError: a key is unknown, or a value has the wrong type or is out of bounds.
        """
        if not isinstance(request, Mapping):
            raise _refuse("", "expected an object", request)
        check_keys(request, known, "")
        given = {key: value for key, value in request.items() if value is not None}
        numbers, categories = self._columns(
            _mapping(given.get("context", {}), "context"), "context", only_context=True
        )
        user_id = given.get("user_id")
        return Query(
            user_id=None if user_id is None else read_id(user_id, "user_id"),
            history=self._history(given["history"]) if "history" in given else None,
            text=_text(given["text"]) if "text" in given else None,
            k=self.read_k(given.get("k", 10)),
            exclude=read_ids(given.get("exclude", []), "exclude"),
            include_seen=_boolean(given.get("include_seen", False), "include_seen"),
            weights=self._weights(given["weights"]) if "weights" in given else None,
            filter=given.get("filter"),
            diversity=_number(given.get("diversity", 0.0), "diversity", 0.0, 1.0),
            context_numbers={name: x for name, x in numbers.items() if not math.isnan(x)},
            context_categories=categories,
            explain=_boolean(given.get("explain", False), "explain"),
        )

    def read_k(self, value: object) -> int:
        """Check the length of a list: a whole number from 1 to the limit."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise _refuse("k", "expected a whole number", value)
        if not 1 <= value <= self._limits.max_k:
            raise _refuse("k", f"expected 1 to {self._limits.max_k}", value)
        return value

    def _history(self, value: object) -> list[Event]:
        entries = _list(value, "history")
        if len(entries) > self._limits.max_history:
            raise RequestError(
                f"history: {len(entries)} events, expected at most {self._limits.max_history}; "
                "send the latest ones",
                field="history",
            )
        events = [self._event(entry, f"history.{at}") for at, entry in enumerate(entries)]
        if all(not math.isnan(event.timestamp) for event in events):
            events.sort(key=lambda event: event.timestamp)  # stable: ties stay as given
        return events

    def _event(self, entry: object, place: str) -> Event:
        event = _mapping(entry, place)
        # `rating` and `timestamp` are always understood, even where a model has no use for them.
        known = ["item_id", "timestamp", "rating", *self._numbers, *self._categories]
        check_keys(event, known, place)
        if event.get("item_id") is None:
            raise RequestError(f"{place}.item_id is missing", field=f"{place}.item_id")
        item_id = read_id(event["item_id"], f"{place}.item_id")
        numbers, categories = self._columns(event, place, only_context=False)
        timestamp = _timestamp(event.get("timestamp"), f"{place}.timestamp")
        for name, column in self._categories.items():
            if isinstance(column, TimeColumn) and categories[name] is None:
                categories[name] = time_part(np.array([timestamp]), column)[0].as_py()
        if "rating" not in self._numbers and event.get("rating") is not None:
            _number(event["rating"], f"{place}.rating", -_LARGEST, _LARGEST)
        return Event(
            item_id=item_id,
            given_id=event["item_id"],  # type: ignore[arg-type]  # checked by read_id
            timestamp=timestamp,
            numbers=numbers,
            categories=categories,
        )

    def _columns(
        self, values: Mapping[str, object], place: str, *, only_context: bool
    ) -> tuple[dict[str, float], dict[str, str | None]]:
        """Read the configured columns of an event or of a context; what is not given is empty."""

        def used(columns: Mapping[str, Column]) -> dict[str, Column]:
            return {
                name: column
                for name, column in columns.items()
                if not only_context or getattr(column, "context", False)
            }

        number_columns, category_columns = used(self._numbers), used(self._categories)
        if only_context:
            check_keys(values, [*number_columns, *category_columns], place)
        numbers = dict.fromkeys(number_columns, math.nan)
        for name, column in number_columns.items():
            if values.get(name) is not None:
                low, high = getattr(column, "min", None), getattr(column, "max", None)
                numbers[name] = _number(
                    values[name],
                    f"{place}.{name}",
                    -_LARGEST if low is None else low,
                    _LARGEST if high is None else high,
                )
        categories: dict[str, str | None] = dict.fromkeys(category_columns)
        for name in category_columns:
            if values.get(name) is not None:
                categories[name] = read_id(values[name], f"{place}.{name}", empty=True)
        return numbers, categories

    def _weights(self, value: object) -> dict[str, float]:
        weights = {}
        for name, weight in _mapping(value, "weights").items():
            if name not in self._tasks:
                raise RequestError(
                    f'weights: there is no task "{clip(name)}"; there are {", ".join(self._tasks)}',
                    code="unknown_task",
                    field=f"weights.{clip(name)}",
                )
            weights[name] = _number(weight, f"weights.{name}", 0.0, _LARGEST)
        if not any(weights.values()):
            raise RequestError("weights: expected one above 0, found none", field="weights")
        return weights


def read_id(value: object, place: str, *, empty: bool = False) -> str:
    """Check an id, a string or an integer, and write it as mtrec does: a string.

    Raises:
        RequestError: it is of another type, empty, or no valid Unicode.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _refuse(place, "expected a string or an integer", value)
    try:
        text = str(value)
        text.encode("utf-8")
    except ValueError as error:  # lone surrogates; integers of thousands of digits
        raise RequestError(f"{place}: not valid Unicode text, or too long", field=place) from error
    if not text and not empty:
        raise RequestError(f"{place}: expected an id, found an empty string", field=place)
    return text


def read_ids(value: object, place: str) -> list[str]:
    """Check a list of ids."""
    return [read_id(entry, f"{place}.{at}") for at, entry in enumerate(_list(value, place))]


def read_text(value: object) -> str:
    """Check a text that must not be empty."""
    text = _text(value)
    if text is None:
        raise RequestError("text: expected some text, found none", field="text")
    return text


def _text(value: object) -> str | None:
    if not isinstance(value, str):
        raise _refuse("text", "expected a string", value)
    if len(value) > MAX_TEXT_CHARACTERS:
        raise RequestError(
            f"text: {len(value)} characters, expected at most {MAX_TEXT_CHARACTERS}", field="text"
        )
    return read_id(value, "text", empty=True).strip() or None


def _timestamp(value: object, place: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise _refuse(place, "expected seconds since 1970 or ISO 8601", value) from error
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float) and abs(value) > _LARGEST_SECONDS:
        raise _refuse(place, "expected seconds since 1970, not milliseconds, or ISO 8601", value)
    return _number(value, place, -_LARGEST_SECONDS, _LARGEST_SECONDS)


def _number(value: object, place: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse(place, "expected a number", value)
    if not low <= value <= high:  # NaN is in no range
        raise _refuse(place, f"expected {low:g} to {high:g}", value)
    return float(value)


def _boolean(value: object, place: str) -> bool:
    if not isinstance(value, bool):
        raise _refuse(place, "expected true or false", value)
    return value


def _list(value: object, place: str) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise _refuse(place, "expected a list", value)
    return value


def _mapping(value: object, place: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _refuse(place, "expected an object", value)
    return value


def check_keys(value: Mapping[str, object], known: Iterable[str], place: str) -> None:
    """Refuse keys that nobody reads; `place` says where in the request they are.

    Raises:
        RequestError: a key is not known; it names the nearest that is.
    """
    names = sorted(set(known))
    for key in value:
        if key not in names:
            where = f"{place}.{clip(key)}" if place else clip(key)
            near = difflib.get_close_matches(clip(key), names, n=1)
            hint = (
                f'did you mean "{near[0]}"?' if near else f"there are {', '.join(names) or 'none'}"
            )
            raise RequestError(f"{where} is not known; {hint}", code="unknown_field", field=where)


def _refuse(place: str, expected: str, found: object) -> RequestError:
    where = f"{place}: " if place else ""
    return RequestError(f"{where}{expected}, found {show(found)}", field=place or None)


def show(value: object) -> str:
    """Write a value of a request for a message: short, and always valid Unicode."""
    if isinstance(value, list | tuple | Mapping):
        return f"{'a list' if isinstance(value, list | tuple) else 'an object'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        return clip(repr(value))
    except ValueError:  # Python refuses to write integers of over 4,300 digits
        return "an integer of thousands of digits"


def clip(value: object) -> str:
    """Cut a key of a request to what a message may show."""
    text = str(value)[:_SHOWN]
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
