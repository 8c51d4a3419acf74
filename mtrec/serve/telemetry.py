"""Count what the endpoint does, as Prometheus metrics of the replica it runs in.

Ray exports them on each node's metrics port, with the application, deployment and replica as tags;
`k8s/grafana-dashboard.json` draws them. Routes know only the protocol `host.Watch`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

LATENCY_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
TOGETHER = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
SCORES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]


class Telemetry:
    """Tell Ray's metrics what a replica answers; make it inside a replica."""

    def __init__(self) -> None:
        # Any: Ray's annotation says a tuple of one.
        by_route: Any = ("route", "status")
        self._requests = Counter("mtrec_requests", "Requests answered.", by_route)
        self._latency = Histogram(
            "mtrec_request_latency_s", "Seconds from a request to its answer.", LATENCY_S, by_route
        )
        self._together = Histogram(
            "mtrec_lists_together", "Ranked lists that one pass of the model made.", TOGETHER
        )
        self._lists = Counter("mtrec_lists", "Ranked lists made.")
        self._cold = Counter(
            "mtrec_cold_start_lists", "Ranked lists of users of whom nothing was known."
        )
        self._empty = Counter("mtrec_empty_lists", "Ranked lists without an item.")
        self._unknown = Counter(
            "mtrec_lists_with_unknown_items", "Ranked lists whose history named unknown items."
        )
        self._score = Histogram("mtrec_top_score", "Score of the first item of a list.", SCORES)
        self._info = Gauge("mtrec_bundle_info", "1 for the bundle that answers.", ("version",))
        self._trained = Gauge(
            "mtrec_bundle_trained_timestamp_s", "When the bundle was trained, since 1970."
        )
        self._refused = Counter("mtrec_bundles_refused", "Bundles that were not taken.")
        self._version = ""

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        tags = {"route": route, "status": str(status)}
        self._requests.inc(1.0, tags)
        self._latency.observe(seconds, tags)

    def lists(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Count ranked lists."""
        self._together.observe(len(answers))
        self._lists.inc(len(answers))
        cold = empty = unknown = 0
        for answer in answers:
            cold += answer["cold_start"]
            unknown += "ignored" in answer
            listed = answer["recommendations"]
            empty += not listed
            if listed:
                self._score.observe(listed[0]["score"])
        for counter, count in ((self._cold, cold), (self._empty, empty), (self._unknown, unknown)):
            if count:
                counter.inc(count)

    def serving(self, info: Mapping[str, Any]) -> None:
        """Note the bundle that answers from now on."""
        version = str(info["model_version"])
        if self._version not in ("", version):
            self._info.set(0.0, {"version": self._version})
        self._version = version
        self._info.set(1.0, {"version": self._version})
        self._trained.set(datetime.fromisoformat(info["trained_at"]).timestamp())

    def refused(self) -> None:
        """Count a bundle that was not taken."""
        self._refused.inc()
