"""What answers: requests answered together, bundles exchanged under them, pointers followed."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from shelf import Shelf, open_bundle

from mtrec.errors import ArtifactError, RequestError
from mtrec.serve.host import MAX_TOGETHER, ModelHost, self_test


class Gate(Shelf):
    """A shelf whose answers wait until it is opened; remembers how many it was asked together."""

    def __init__(self, version: str = "v1") -> None:
        super().__init__(version)
        self.opened = threading.Event()
        self.together: list[int] = []

    def recommend(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if "self-test" not in self.version and self.together:
            self.opened.wait(10.0)
        self.together.append(len(requests))
        return super().recommend(requests)


class Notes:
    """Remember what was told."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.versions: list[str] = []
        self.bad = 0

    def request(self, route: str, status: int, seconds: float) -> None:
        raise AssertionError("only the guard tells of requests")

    def lists(self, answers: Sequence[Mapping[str, Any]]) -> None:
        self.made.append(len(answers))

    def serving(self, info: Mapping[str, Any]) -> None:
        self.versions.append(info["model_version"])

    def refused(self) -> None:
        self.bad += 1


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.anyio
async def test_requests_that_come_while_the_model_works_are_answered_together() -> None:
    gate, notes = Gate(), Notes()
    host = ModelHost(lambda _: gate, notes)
    host.open("v1")  # its self-test asks once
    first = asyncio.create_task(host.recommend({"user_id": "first"}))
    await asyncio.sleep(0.05)
    others = [asyncio.create_task(host.recommend({"user_id": at, "k": 1})) for at in range(70)]
    await asyncio.sleep(0.05)
    gate.opened.set()
    answers = await asyncio.gather(first, *others)
    host.close()

    assert [answer["user_id"] for answer in answers] == ["first", *range(70)]
    assert gate.together == [1, 1, MAX_TOGETHER, 70 - MAX_TOGETHER]
    assert notes.made == gate.together[1:]


@pytest.mark.anyio
async def test_a_wrong_request_harms_none_of_those_it_was_answered_with() -> None:
    gate = Gate()
    host = ModelHost(lambda _: gate)
    host.open("v1")
    first = asyncio.create_task(host.recommend({}))
    await asyncio.sleep(0.05)
    wrong = asyncio.create_task(host.recommend({"k": 0}))
    bug = asyncio.create_task(host.recommend({"user_id": "bug"}))
    right = asyncio.create_task(host.recommend({"user_id": 7, "k": 2}))
    await asyncio.sleep(0.05)
    gate.opened.set()
    found = await asyncio.gather(first, wrong, bug, right, return_exceptions=True)
    host.close()

    assert isinstance(found[1], RequestError) and found[1].field == "k"
    assert isinstance(found[2], ZeroDivisionError)
    assert isinstance(found[3], dict) and found[3]["user_id"] == 7


@pytest.mark.anyio
async def test_a_caller_who_goes_away_leaves_the_others_their_answers() -> None:
    gate = Gate()
    host = ModelHost(lambda _: gate)
    host.open("v1")
    first = asyncio.create_task(host.recommend({}))
    await asyncio.sleep(0.05)
    gone, stays = (asyncio.create_task(host.recommend({"user_id": at})) for at in (1, 2))
    await asyncio.sleep(0.05)
    gone.cancel()
    gate.opened.set()
    assert (await first)["model_version"] == "v1"
    assert (await stays)["user_id"] == 2
    with pytest.raises(asyncio.CancelledError):
        await gone
    host.close()


@pytest.mark.anyio
async def test_answers_made_together_are_all_of_one_version_even_during_a_swap() -> None:
    gates = {name: Gate(name) for name in ("v1", "v2")}
    host = ModelHost(lambda path: gates[path])
    host.open("v1")
    first = asyncio.create_task(host.recommend({}))
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(host.recommend({"user_id": at})) for at in range(5)]
    await asyncio.sleep(0.05)
    await host.swap("v2")
    for gate in gates.values():
        gate.opened.set()

    assert (await first)["model_version"] == "v1"
    assert {answer["model_version"] for answer in await asyncio.gather(*waiting)} == {"v2"}
    host.close()


def test_a_pointer_that_moves_is_followed_and_a_bad_place_is_not() -> None:
    place, notes = ["bundles/v1"], Notes()

    def find(_: str) -> str:
        if place[0] == "":
            raise ArtifactError("the pointer names nothing")
        return place[0]

    host = ModelHost(lambda _: open_bundle(place[0].rpartition("/")[2]), notes)
    host.open("bundles")
    host.follow(find, 0.01)
    try:
        place[0] = "bundles/v2"
        wait_for(lambda: host.require().version == "v2")
        for bad, count in (("", 1), ("bundles/nowhere", 2), ("bundles/unsound", 3)):
            place[0] = bad
            wait_for(lambda count=count: notes.bad == count)  # type: ignore[misc]  # bound now
            assert host.refused is not None
            assert host.require().version == "v2"
        # Another mistake is told as well, though nothing was right in between.
        place[0] = ""
        wait_for(lambda: notes.bad == 4)
        assert host.refused == "the pointer names nothing"
        place[0] = "bundles/unsound"
        # What was refused is not tried again and again.
        time.sleep(0.1)
        assert notes.bad == 4
        place[0] = "bundles/v3"
        wait_for(lambda: host.require().version == "v3")
        assert host.refused is None
    finally:
        host.close()
    assert notes.versions == ["v1", "v2", "v3"]


def test_whatever_goes_wrong_the_pointer_is_looked_at_again() -> None:
    place = ["bundles/v1"]

    def find(_: str) -> str:
        if place[0] == "away":
            raise OSError("no route to the storage")
        return place[0]

    def load(_: str) -> Shelf:
        if place[0].endswith("bug"):
            raise ZeroDivisionError("in a loader")
        return open_bundle(place[0].rpartition("/")[2])

    host = ModelHost(load)
    host.open("bundles")
    host.follow(find, 0.01)
    try:
        for bad in ("away", "bundles/bug"):
            place[0] = bad
            wait_for(lambda: host.refused is not None)
            assert host.require().version == "v1"
            place[0] = "bundles/v1"
            wait_for(lambda: host.refused is None)
        place[0] = "bundles/v2"
        wait_for(lambda: host.require().version == "v2")
    finally:
        host.close()


@pytest.mark.anyio
async def test_of_two_bundles_wanted_at_once_the_later_one_stays() -> None:
    entered, go_on, loaded = threading.Event(), threading.Event(), []

    def load(path: str) -> Shelf:
        loaded.append(path)
        if path == "slow":
            entered.set()
            go_on.wait(10.0)
        return Shelf(path)

    host = ModelHost(load)
    host.open("v1")
    slow = asyncio.create_task(host.swap("slow"))
    await asyncio.to_thread(entered.wait, 10.0)
    waiting = asyncio.create_task(host.swap("older"))
    await asyncio.sleep(0.05)
    newest = asyncio.create_task(host.swap("newest"))
    await asyncio.sleep(0.05)
    go_on.set()
    await asyncio.gather(slow, waiting, newest)
    host.close()

    assert host.require().version == "newest"
    # Nobody loads what is no longer wanted.
    assert loaded == ["v1", "slow", "newest"]


def test_a_pointer_that_comes_back_to_what_answers_ends_the_complaint() -> None:
    place = ["bundles/v1"]
    host = ModelHost(lambda _: open_bundle(place[0].rpartition("/")[2]))
    host.open("bundles")
    host.follow(lambda _: place[0], 0.01)
    try:
        place[0] = "bundles/nowhere"
        wait_for(lambda: host.refused is not None)
        place[0] = "bundles/v1"
        wait_for(lambda: host.refused is None)
    finally:
        host.close()


@pytest.mark.anyio
async def test_health_is_answered_while_the_model_works(host: ModelHost) -> None:
    release = threading.Event()
    work = asyncio.create_task(host.ask(lambda _: {"waited": release.wait(5.0)}))
    started = time.monotonic()
    await asyncio.sleep(0.01)
    release.set()

    assert (await work)[0] == {"waited": True}
    assert time.monotonic() - started < 1.0


@pytest.mark.anyio
async def test_a_good_bundle_is_swapped_in_and_a_bad_one_refused(host: ModelHost) -> None:
    await host.swap("v2")
    assert (host.require().version, host.refused) == ("v2", None)

    for bad in ("nowhere", "unsound"):
        await host.swap(bad)
        assert host.require().version == "v2"
        assert host.refused

    await host.swap("v3")
    assert (host.require().version, host.refused) == ("v3", None)


@pytest.mark.anyio
async def test_an_answer_under_way_keeps_its_version_during_a_swap(host: ModelHost) -> None:
    release = threading.Event()
    work = asyncio.create_task(host.ask(lambda _: {"waited": release.wait(5.0)}))
    await asyncio.sleep(0)
    await host.swap("v2")
    release.set()

    assert (await work)[1] == "v1"


def test_a_pointer_that_goes_back_and_forth_is_followed_at_once() -> None:
    place = ["bundles/v1"]
    host = ModelHost(lambda _: open_bundle(place[0].rpartition("/")[2]))
    host.open("bundles")
    host.follow(lambda _: place[0], 0.01)
    try:
        for version in ("v2", "v1", "v2", "v1"):
            place[0] = f"bundles/{version}"
            wait_for(lambda version=version: host.require().version == version)  # type: ignore[misc]  # bound now
    finally:
        host.close()


def test_the_self_test_asks_with_a_text_where_the_bundle_has_an_encoder() -> None:
    class Told(Shelf):
        texts: list[str] = []  # noqa: RUF012  # of this test

        def info(self) -> dict[str, Any]:
            return {**super().info(), "encoder": "some-model"}

        def recommend(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
            self.texts += [request["text"] for request in requests if "text" in request]
            return super().recommend(requests)

    shelf = Told()
    self_test(shelf)
    assert len(shelf.texts) == 1


@pytest.mark.parametrize("top", [7.0, -1.0, math.nan])
def test_the_self_test_refuses_scores_outside_their_range(top: float) -> None:
    with pytest.raises(ArtifactError, match="fails its self-test"):
        self_test(Shelf(top=top))
