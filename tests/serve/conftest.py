"""Fixtures of the tests of what stands around a recommender."""

from collections.abc import Iterator

import pytest
from shelf import open_bundle

from mtrec.serve.host import ModelHost


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def host() -> Iterator[ModelHost]:
    """Give a host that holds version v1 of a shelf."""
    host = ModelHost(open_bundle)
    host.open("v1")
    yield host
    host.close()
