"""Exit codes and HTTP status that the shells promise to users."""

import inspect

import pytest

from mtrec import errors
from mtrec.errors import ArtifactError, ConfigError, DataError, GateError, MtrecError, RequestError


@pytest.mark.parametrize(
    ("kind", "code"),
    [(MtrecError, 1), (ConfigError, 2), (DataError, 3), (ArtifactError, 4), (GateError, 1)],
)
def test_each_kind_of_error_has_the_exit_code_that_users_were_promised(
    kind: type[MtrecError], code: int
) -> None:
    assert kind("x").exit_code == code


def test_a_request_error_says_what_http_needs_and_has_no_exit_code_of_its_own() -> None:
    error = RequestError("no such item", code="unknown_item", status=404, field="item_ids.3")

    assert (str(error), error.code, error.status, error.field) == (
        "no such item",
        "unknown_item",
        404,
        "item_ids.3",
    )
    assert error.exit_code == 1


def test_a_request_error_is_a_422_unless_said_otherwise() -> None:
    error = RequestError("k must be positive")

    assert (error.status, error.code, error.field) == (422, "invalid", None)


def test_every_error_of_the_module_can_be_caught_as_one() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]

    assert len(kinds) == 6
    assert all(issubclass(kind, MtrecError) for kind in kinds)
