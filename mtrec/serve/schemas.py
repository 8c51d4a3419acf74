"""The shapes of HTTP bodies: what `/openapi.json` says of them, and how a body is opened.

A user's wishes are checked where they are understood, by `Recommender` (`mtrec.query`), so that
HTTP and Python refuse alike and the hot route builds no model objects. Here a body becomes an
object (strict JSON), and the envelopes around such wishes are taken off. Tests hold the shapes and
the checks equal. Knows no model and no server.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from pydantic_core import from_json
from typing_extensions import TypedDict

from mtrec.errors import RequestError
from mtrec.query import MAX_TEXT_CHARACTERS, SCORE_KEYS, clip, show

_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
)
_ANSWER = ConfigDict(use_attribute_docstrings=True)

Id = Annotated[str, Field(min_length=1)] | int
Scalar = str | float | bool
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]


# ---- requests -----------------------------------------------------------------------------------


@with_config(ConfigDict(extra="allow", use_attribute_docstrings=True))
class Event(TypedDict):
    """One thing that the user did, oldest first."""

    item_id: Id
    rating: NotRequired[float | None]
    """In the scale of the data, as is every other number or category column of an event."""
    timestamp: NotRequired[float | str | None]
    """Seconds since 1970, or ISO 8601, UTC unless it says otherwise."""


@with_config(_STRICT)
class Range(TypedDict):
    """Bounds of a number column, both included."""

    min: NotRequired[float]
    max: NotRequired[float]


@with_config(_STRICT)
class UserRequest(TypedDict):
    """Who is asking: a known user, a history, a text, or several of them."""

    # Described by `Field`, because typed dicts that extend this one lose attribute docstrings.
    user_id: NotRequired[Id | None]
    history: NotRequired[
        Annotated[
            list[Event] | None, Field(description="Replaces the stored history of `user_id`.")
        ]
    ]
    text: NotRequired[
        Annotated[
            Text | None,
            Field(
                description="The user or a wish in words of a language that the text encoder knows."
            ),
        ]
    ]
    context: NotRequired[
        Annotated[
            dict[str, Scalar | None] | None,
            Field(description="Values of the context columns at this moment."),
        ]
    ]


@with_config(_STRICT)
class RecommendRequest(UserRequest):
    """Ask for the best items for one user."""

    k: NotRequired[Annotated[int, Field(ge=1)] | None]
    """Items wanted; default 10."""
    exclude: NotRequired[list[Id] | None]
    """Items that must not come."""
    include_seen: NotRequired[bool | None]
    """Also recommend what is in the history; default false."""
    weights: NotRequired[dict[str, Annotated[float, Field(ge=0.0)]] | None]
    """Weight of each task in the score, instead of the configured ones."""
    filter: NotRequired[dict[str, Scalar | list[Scalar] | Range] | None]
    """Item column: a value, a list of values, or `{min, max}`."""
    diversity: NotRequired[Annotated[float, Field(ge=0.0, le=1.0)] | None]
    """0 is the plain ranking, 1 spreads the list as far as it goes."""
    explain: NotRequired[bool | None]
    """Add `content_share` and `reasons` to each item."""


@with_config(_STRICT)
class BatchRequest(TypedDict):
    """Ask for several users at once."""

    requests: Annotated[list[RecommendRequest], Field(min_length=1)]


@with_config(_STRICT)
class ScoreRequest(UserRequest):
    """Ask what one user would think of given items."""

    item_ids: Annotated[list[Id], Field(min_length=1)]
    weights: NotRequired[dict[str, Annotated[float, Field(ge=0.0)]] | None]
    """Weight of each task in the score, instead of the configured ones."""


@with_config(_STRICT)
class SimilarRequest(TypedDict):
    """Ask for the items most like one item or one text; give exactly one of the two."""

    item_id: NotRequired[Id | None]
    text: NotRequired[Text | None]
    k: NotRequired[Annotated[int, Field(ge=1)] | None]


@with_config(_STRICT)
class FriendsRequest(UserRequest):
    """Ask for the users most likely to be friends with one user."""

    k: NotRequired[Annotated[int, Field(ge=1)] | None]


# ---- answers (documentation only; they are built by `Recommender`) -------------------------------


@with_config(_ANSWER)
class Reason(TypedDict):
    """An item of the history that speaks for a recommendation."""

    item_id: str | int
    effect: float
    """How much the recommendation's log-probability, among all that may be listed, falls without
    it; above 0."""
    similarity: float
    """Cosine of the two items' content, in [-1, 1]."""


@with_config(_ANSWER)
class Recommendation(TypedDict):
    """One item of a ranked list."""

    item_id: str | int
    score: float
    """Weighted mean of the tasks, in [0, 1]."""
    tasks: dict[str, float]
    """One number per task. Regression: a value in the label's scale; binary: a probability;
    retrieval: exp(z - z_max), 1 for the item with the largest logit z, not a probability."""
    content_share: NotRequired[float]
    """Part of the ranking logit that comes from text and features, in [0, 1]."""
    reasons: NotRequired[list[Reason]]
    """The items of the history that speak most for this one, at most three."""


@with_config(_ANSWER)
class RecommendAnswer(TypedDict):
    """A ranked list, best first; equal scores are ordered by item id."""

    user_id: str | int | None
    model_version: str
    cold_start: bool
    """True where nothing was known of the user: the list is the popular one."""
    recommendations: list[Recommendation]
    ignored: NotRequired[list[str | int]]
    """Items of the history that the catalogue does not hold."""


@with_config(_ANSWER)
class BatchAnswer(TypedDict):
    """The answers in the order of the requests."""

    model_version: str
    results: list[RecommendAnswer]


@with_config(_ANSWER)
class ItemScore(TypedDict):
    """What one user would think of one item."""

    item_id: str | int
    score: NotRequired[float]
    tasks: dict[str, float]


@with_config(_ANSWER)
class ScoreAnswer(TypedDict):
    """One entry per asked item, in the order asked."""

    user_id: NotRequired[str | int | None]
    model_version: str
    scores: list[ItemScore]


@with_config(_ANSWER)
class SimilarItem(TypedDict):
    """One item and how alike it is."""

    item_id: str | int
    score: float


@with_config(_ANSWER)
class SimilarAnswer(TypedDict):
    """Items most alike first."""

    model_version: str
    recommendations: list[SimilarItem]


@with_config(_ANSWER)
class Friend(TypedDict):
    """One user and how likely a friend."""

    user_id: str | int
    score: float


@with_config(_ANSWER)
class FriendsAnswer(TypedDict):
    """Users likeliest first."""

    model_version: str
    friends: list[Friend]


@with_config(_ANSWER)
class ItemsAnswer(TypedDict):
    """Items with their columns."""

    model_version: str
    items: list[dict[str, object]]
    """`item_id` and one entry per column of the items table."""


@with_config(_ANSWER)
class UsersAnswer(TypedDict):
    """Ids of stored users, or what is stored of the one that was asked for."""

    model_version: str
    users: NotRequired[list[str | int]]
    user_id: NotRequired[str | int]
    events: NotRequired[int]
    """Events that are stored."""
    seen: NotRequired[int]
    """Items that the user has met."""
    history: NotRequired[list[dict[str, object]]]
    """The latest events, newest first: `item_id`, `timestamp` and numbers such as `rating`."""


@with_config(ConfigDict(extra="allow"))
class ModelAnswer(TypedDict):
    """What is being served: version, tasks, metrics, counts, time of training."""

    model_version: str
    tasks: list[object]
    metrics: dict[str, object]


@with_config(_ANSWER)
class HealthAnswer(TypedDict):
    """`live`, or `ready` with the version that answers."""

    status: str
    model_version: NotRequired[str | None]
    refused: NotRequired[str]
    """Why a newer bundle was not taken; the old one keeps answering."""


@with_config(_ANSWER)
class ErrorBody(TypedDict):
    """What was wrong."""

    code: str
    message: str
    field: NotRequired[str]
    """Path of the offending field, such as `history.0.item_id`."""


@with_config(_ANSWER)
class ErrorAnswer(TypedDict):
    """The shape of every answer that is no success."""

    error: ErrorBody


# ---- opening a body ------------------------------------------------------------------------------


def open_body(body: bytes) -> dict[str, object]:
    """Read a body that must be a JSON object.

    Raises:
        RequestError: 400 if it is not JSON (NaN, broken UTF-8 and nesting deeper than 200
            included), 422 if it is no object.
    """
    try:
        tree = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}", code="not_json", status=400) from error
    if not isinstance(tree, dict):
        raise RequestError(f"the body: expected an object, found {show(tree)}")
    return tree


def open_batch(body: dict[str, object], max_batch: int) -> list[Mapping[str, object]]:
    """Take the requests out of a batch.

    Raises:
        RequestError: 422, there are none, too many, or there is something else.
    """
    _check_keys(body, ("requests",))
    requests = _list(body, "requests", max_batch)
    for at, request in enumerate(requests):
        if not isinstance(request, Mapping):
            place = f"requests.{at}"
            raise RequestError(f"{place}: expected an object, found {show(request)}", field=place)
    return requests


def open_score(
    body: dict[str, object], max_items: int
) -> tuple[dict[str, object], list[str | int]]:
    """Part the user from the items to be scored.

    Raises:
        RequestError: 422, there are no items or too many.
    """
    _check_keys(body, (*SCORE_KEYS, "item_ids"))
    item_ids = _list(body, "item_ids", max_items)
    return {key: value for key, value in body.items() if key != "item_ids"}, item_ids


def open_similar(body: dict[str, object]) -> dict[str, Any]:
    """Take what shall be resembled, types unchecked; a null counts as not given.

    Raises:
        RequestError: 422, there is another key, or not exactly one of item and text.
    """
    _check_keys(body, ("item_id", "text", "k"))
    given = {key: value for key, value in body.items() if value is not None}
    if ("item_id" in given) == ("text" in given):
        raise RequestError('give exactly one of "item_id" and "text"', field="item_id")
    return given


@functools.cache
def components() -> dict[str, Any]:
    """Give the JSON schemas of all shapes, by name, for `components/schemas` of OpenAPI."""
    _, definitions = TypeAdapter.json_schemas(
        [(shape.__name__, "validation", TypeAdapter(shape)) for shape in _REQUESTS + _ANSWERS],
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


_REQUESTS = (RecommendRequest, BatchRequest, ScoreRequest, SimilarRequest, FriendsRequest)
_ANSWERS = (
    *(RecommendAnswer, BatchAnswer, ScoreAnswer, SimilarAnswer, FriendsAnswer),
    *(ItemsAnswer, UsersAnswer, ModelAnswer, HealthAnswer, ErrorAnswer),
)


def _list(body: Mapping[str, object], key: str, most: int) -> list[Any]:
    entries = body.get(key)
    if not isinstance(entries, list) or not entries:
        found = show(entries) if key in body else "nothing"
        raise RequestError(f"{key}: expected a list that is not empty, found {found}", field=key)
    if len(entries) > most:
        raise RequestError(f"{key}: {len(entries)} entries, expected at most {most}", field=key)
    return entries


def _check_keys(body: Mapping[str, object], known: Sequence[str]) -> None:
    for key in body:
        if key not in known:
            name = clip(key)
            raise RequestError(
                f"{name} is not known; there are {', '.join(known)}",
                code="unknown_field",
                field=name,
            )
