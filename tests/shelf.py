"""A recommender without a model, for tests of what stands around one."""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from mtrec.configfile import parse_config
from mtrec.errors import ArtifactError, RequestError
from mtrec.query import Limits as QueryLimits
from mtrec.query import Query, QueryReader, read_id

CONFIG = parse_config(
    {
        "data": {
            "interactions": {
                "path": "ratings.csv",
                "user_id": "user",
                "item_id": "item",
                "columns": {"rating": {"kind": "number", "min": 1, "max": 5}},
            }
        },
        "tasks": [{"name": "next", "kind": "retrieval"}],
    }
)
TITLES = {1: "羽绒服", 2: "毛衣", 3: "短裤", 4: "Coat"}


class Shelf:
    """A recommender without a model: the unseen items of a shelf, in the order of their ids."""

    def __init__(self, version: str = "v1", top: float = 1.0) -> None:
        self.version, self.top = version, top
        self.reader = QueryReader(CONFIG, QueryLimits(max_k=50, max_history=20))
        self.threads: set[str] = set()

    def recommend(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        self.threads.add(threading.current_thread().name)
        return [self._answer(self.reader.read(request), request) for request in requests]

    def _answer(self, query: Query, request: Mapping[str, Any]) -> dict[str, Any]:
        seen = {event.item_id for event in query.history or []} if not query.include_seen else set()
        if query.user_id == "bug":
            raise ZeroDivisionError("in /srv/model.py")
        left = [item for item in TITLES if str(item) not in seen | set(query.exclude)]
        return {
            "user_id": request.get("user_id"),
            "model_version": self.version,
            "cold_start": query.history is None,
            "recommendations": [
                {"item_id": item, "score": self.top / rank, "tasks": {"next": self.top / rank}}
                for rank, item in enumerate(left[: query.k], start=1)
            ],
        }

    def score(self, request: Mapping[str, Any], item_ids: Sequence[Any]) -> list[dict[str, Any]]:
        self.reader.read(request)
        return [{"item_id": item, "score": 0.5, "tasks": {"next": 0.5}} for item in item_ids]

    def similar_items(
        self, item_id: str | int | None = None, text: str | None = None, k: int = 10
    ) -> list[dict[str, Any]]:
        self.reader.read_k(k)
        if item_id is not None and read_id(item_id, "item_id") not in {
            str(item) for item in TITLES
        }:
            raise RequestError(f"item {item_id} is unknown", code="unknown_item", status=404)
        return [{"item_id": item, "score": 1.0} for item in TITLES if item != item_id][:k]

    def friends(self, request: Mapping[str, Any], k: int = 10) -> list[dict[str, Any]]:
        raise RequestError("no social task", code="no_social_task", status=404)

    def find_users(self, prefix: str, limit: int) -> list[str | int]:
        return [user for user in ("ann", "anton", "bo") if user.startswith(prefix)][:limit]

    def user(self, user_id: str | int, limit: int) -> dict[str, Any]:
        if user_id not in ("ann", "anton", "bo"):
            raise RequestError("no such user", code="unknown_user", status=404, field="id")
        return {"user_id": user_id, "events": 2, "seen": 2, "history": [{"item_id": 1}][:limit]}

    def info(self) -> dict[str, Any]:
        return {"model_version": self.version, "tasks": [], "metrics": {"ndcg@10": math.nan}}

    def find_items(self, query: str, limit: int) -> list[dict[str, Any]]:
        found = [item for item, title in TITLES.items() if query in title]
        return [{"item_id": item, "title": TITLES[item]} for item in found[:limit]]

    def describe(self, item_ids: Sequence[Any]) -> list[dict[str, Any]]:
        known = {str(item): title for item, title in TITLES.items()}
        return [{"item_id": int(i), "title": known[i]} for i in item_ids if i in known]


def open_bundle(path: str) -> Shelf:
    if path == "nowhere":
        raise ArtifactError("/srv/bundles/nowhere holds no bundle")
    return Shelf(path, top=7.0 if path == "unsound" else 1.0)
