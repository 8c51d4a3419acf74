"""What answers behind the routes: the one recommender in use, exchanged while requests come in.

A new bundle is loaded aside, tested and then swapped in by one assignment, so that no answer mixes
two versions. Model work runs on one thread of its own: the event loop stays free for health checks.
Requests that come in while the model works are answered together, in one pass, as soon as it is
free: under load they share its cost, and a request alone waits for nobody. Knows no HTTP, no Ray.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from mtrec.errors import ArtifactError, MtrecError, RequestError
from mtrec.runlog import event

MAX_TOGETHER = 64
"""Requests answered in one pass at most."""
_RETRY_REFUSED_S = 60.0

_log = logging.getLogger("mtrec.serve")

Json = dict[str, Any]


class Servable(Protocol):
    """What the routes need of a recommender; `mtrec.recommender.Recommender` has it."""

    def recommend(self, requests: Sequence[Mapping[str, Any]]) -> list[Json]:
        """Answer requests in their order."""

    def score(self, request: Mapping[str, Any], item_ids: Sequence[str | int]) -> list[Json]:
        """Give one entry per item."""

    def similar_items(
        self, item_id: str | int | None = None, text: str | None = None, k: int = 10
    ) -> list[Json]:
        """List the items most like one item or text."""

    def friends(self, request: Mapping[str, Any], k: int = 10) -> list[Json]:
        """List likely friends, or refuse with 404 where there is no social task."""

    def find_items(self, query: str, limit: int) -> list[Json]:
        """List items whose id or text columns hold the query."""

    def describe(self, item_ids: Sequence[str | int]) -> list[Json]:
        """Give the columns of items; unknown ones are left out."""

    def find_users(self, prefix: str, limit: int) -> list[str | int]:
        """List ids of stored users that begin with a prefix."""

    def user(self, user_id: str | int, limit: int) -> Json:
        """Tell what is stored of a user, or refuse with 404."""

    def info(self) -> Json:
        """Tell version, tasks, metrics, counts."""


class Watch(Protocol):
    """What is told of the work, for whoever counts it; called from several threads."""

    def request(self, route: str, status: int, seconds: float) -> None:
        """Tell of a request that was answered."""

    def lists(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Tell of ranked lists that were made in one pass."""

    def serving(self, info: Mapping[str, Any]) -> None:
        """Tell of the bundle that answers from now on."""

    def refused(self) -> None:
        """Tell of a bundle that was not taken."""


class Unwatched:
    """Count nothing."""

    def request(self, route: str, status: int, seconds: float) -> None:
        """Let it pass."""

    def lists(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Let it pass."""

    def serving(self, info: Mapping[str, Any]) -> None:
        """Let it pass."""

    def refused(self) -> None:
        """Let it pass."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A recommender that passed its self-test, and what it says of itself."""

    recommender: Servable
    version: str
    info: Json


class ModelHost:
    """Hold the recommender that answers, and exchange it for a newer one.

    Args:
        load: opens a bundle; raises `MtrecError` if it is missing or damaged.
        watch: is told what is answered.

    Attributes:
        current: what answers; None until the first `open`.
        refused: why the last swap was not made; None if it was.
    """

    def __init__(self, load: Callable[[str], Servable], watch: Watch | None = None) -> None:
        self._load = load
        self.watch = watch or Unwatched()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="recommender")
        self._opening = threading.Lock()
        self._waiting: list[tuple[Mapping[str, Any], asyncio.Future[Json]]] = []
        self._answering: asyncio.Task[None] | None = None
        self._closed = threading.Event()
        self._follower: threading.Thread | None = None
        self._path = ""
        self.current: Loaded | None = None
        self.refused: str | None = None

    # ---- bundles --------------------------------------------------------------------------------

    def open(self, path: str) -> None:
        """Load a bundle, test it and let it answer from now on.

        Raises:
            MtrecError: it cannot be loaded or fails its self-test; what answered before stays.
        """
        self._path = path
        self._renew(path)

    async def swap(self, path: str) -> None:
        """Open a bundle beside the one that answers; a bad one is refused and remembered.

        Raises:
            MtrecError: it is bad and there is none yet.
        """
        self._path = path
        await asyncio.to_thread(self._try, path)

    def _try(self, path: str) -> None:
        try:
            self._renew(path)
        except Exception as error:  # whatever a bad bundle does, the good one goes on answering
            if self.current is None:
                raise
            self._refuse(path, error)

    def _renew(self, path: str) -> None:
        with self._opening:
            if path != self._path:  # meanwhile another one is wanted
                return
            loaded = self_test(self._load(path))
            previous, self.current, self.refused = self.current, loaded, None
        replaced = previous.version if previous else None
        event(_log, "bundle.serving", version=loaded.version, replaced=replaced)
        self.watch.serving(loaded.info)

    def _refuse(self, path: str, error: Exception) -> None:
        self.refused = _reason(error)
        version = self.require().version
        # What is no error of ours is a bug: the log has to say where.
        trace = None if isinstance(error, MtrecError) else error
        _log.error(
            "bundle.refused path=%s serving=%s: %s", path, version, self.refused, exc_info=trace
        )
        self.watch.refused()

    def follow(self, find: Callable[[str], str], every_s: float) -> None:
        """Look from now on whether the opened path means another version, and exchange it then.

        Args:
            find: gives the folder of the version that a path means; raises `MtrecError`.
            every_s: seconds between two looks. A version that was refused is tried again after a
                minute, for a storage that was away may be back.
        """
        self._follower = threading.Thread(
            target=self._look, args=(find, every_s), name="bundle-follower", daemon=True
        )
        self._follower.start()

    def _look(self, find: Callable[[str], str], every_s: float) -> None:
        # When those that were refused were tried.
        tried: dict[str, float] = {}
        while not self._closed.wait(every_s):
            path, current = self._path, self.current
            if current is None:
                continue
            try:
                place = find(path)
            except Exception as error:  # the storage may be back at the next look
                if self.refused != _reason(error):
                    self._refuse(path, error)
                continue
            if place.rstrip("/").rpartition("/")[2] == current.version:
                self.refused = None
                continue
            if time.monotonic() - tried.get(place, -_RETRY_REFUSED_S) < _RETRY_REFUSED_S:
                continue
            tried[place] = time.monotonic()
            self._try(path)
            if self.refused is None:
                del tried[place]

    def require(self) -> Loaded:
        """Give what answers.

        Raises:
            RequestError: 503, nothing is loaded yet.
        """
        if self.current is None:
            raise RequestError("no bundle is loaded yet", code="not_ready", status=503)
        return self.current

    def tell(self) -> None:
        """Tell the watch again what answers: what is not told for long is forgotten.

        Raises:
            RequestError: 503, nothing is loaded yet.
        """
        self.watch.serving(self.require().info)

    def close(self) -> None:
        """Let the model's thread end, and look for no bundle any more."""
        self._closed.set()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._follower is not None:
            self._follower.join()

    # ---- work -----------------------------------------------------------------------------------

    async def ask(self, work: Callable[[Servable], Json]) -> tuple[Json, str]:
        """Run `work` on the model's thread; give what it gave, and the version that gave it."""
        loaded = self.require()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, work, loaded.recommender), loaded.version

    async def recommend(self, request: Mapping[str, Any]) -> Json:
        """Answer one request, together with others that wait for the model.

        Raises:
            RequestError: the request is wrong; those that were answered with it are not harmed.
        """
        self.require()
        future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer_waiting())
        return await future

    async def _answer_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            together, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
            try:
                loaded = self.require()
                requests = [request for request, _ in together]
                answers = await loop.run_in_executor(
                    self._executor, self._answer_each, loaded.recommender, requests
                )
            except BaseException as error:
                for _, future in together:
                    if not future.done():
                        future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for (_, future), answer in zip(together, answers, strict=True):
                if future.done():  # the caller went away
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _answer_each(
        self, recommender: Servable, requests: Sequence[Mapping[str, Any]]
    ) -> Sequence[Json | Exception]:
        """Answer requests together; where that fails, each alone, so that one harms no other."""
        try:
            answers = recommender.recommend(requests)
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [self._answer_each(recommender, [request])[0] for request in requests]
        self.watch.lists(answers)
        return answers


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def self_test(recommender: Servable) -> Loaded:
    """Ask a recommender for what every bundle can answer, and look at the answer.

    Raises:
        ArtifactError: there is no item, the list is empty, unsorted or not within [0, 1], or the
            text encoder on this machine is not the bundle's.
    """
    info = recommender.info()
    version = str(info["model_version"])
    items = recommender.find_items("", 1)
    if not items:
        raise ArtifactError(f"bundle {version} holds no items; train it on data that has some")
    golden = {"history": [{"item_id": items[0]["item_id"]}], "include_seen": True, "k": 3}
    try:
        listed = recommender.recommend([golden])[0]["recommendations"]
        if info.get("encoder"):
            # Also loads the language model, which takes seconds, before somebody waits for it.
            recommender.recommend([{"text": "a", "k": 1}])
    except RequestError as error:
        raise ArtifactError(f"bundle {version} refuses its self-test: {error}") from error
    scores = [entry["score"] for entry in listed]
    # A NaN is in no range.
    if (
        not scores
        or scores != sorted(scores, reverse=True)
        or not all(0.0 <= score <= 1.0 for score in scores)
    ):
        raise ArtifactError(
            f"bundle {version} fails its self-test: expected a list with falling scores in "
            f"[0, 1], found {scores}\ntrain again, or serve an earlier version"
        )
    return Loaded(recommender, version, info)
