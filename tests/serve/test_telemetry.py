"""What the endpoint counts, with metrics that remember in the place of Ray's."""

from collections.abc import Callable
from typing import Any

import pytest

from mtrec.serve import telemetry
from mtrec.serve.telemetry import Telemetry

Recorded = dict[str, list[tuple[float, dict[str, str] | None]]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found: Recorded = {}

    def kind(method: str) -> Callable[..., Any]:
        class Metric:
            def __init__(self, name: str, description: str, *rest: object) -> None:
                assert description.endswith(".")
                self._calls = found.setdefault(name, [])

        def record(self: Any, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
            assert value > 0 or method != "inc"
            self._calls.append((value, tags))

        setattr(Metric, method, record)
        return Metric

    for name, method in (("Counter", "inc"), ("Gauge", "set"), ("Histogram", "observe")):
        monkeypatch.setattr(telemetry, name, kind(method))
    return found


def answer(*scores: float, cold: bool = False, **more: object) -> dict[str, Any]:
    return {"cold_start": cold, "recommendations": [{"score": s} for s in scores], **more}


def test_requests_are_counted_by_route_and_status(recorded: Recorded) -> None:
    Telemetry().request("/v1/score", 422, 0.25)

    tags = {"route": "/v1/score", "status": "422"}
    assert recorded["mtrec_requests"] == [(1.0, tags)]
    assert recorded["mtrec_request_latency_s"] == [(0.25, tags)]


def test_lists_are_counted_with_what_was_not_known(recorded: Recorded) -> None:
    Telemetry().lists([answer(0.9, 0.1), answer(0.5, cold=True), answer(ignored=["gone"])])

    assert [value for value, _ in recorded["mtrec_lists_together"]] == [3]
    assert [value for value, _ in recorded["mtrec_lists"]] == [3]
    assert [value for value, _ in recorded["mtrec_cold_start_lists"]] == [1]
    assert [value for value, _ in recorded["mtrec_empty_lists"]] == [1]
    assert [value for value, _ in recorded["mtrec_lists_with_unknown_items"]] == [1]
    assert [value for value, _ in recorded["mtrec_top_score"]] == [0.9, 0.5]


def test_one_version_at_a_time_is_the_one_that_answers(recorded: Recorded) -> None:
    told = Telemetry()
    for version, when in (("v1", "2026-01-01T00:00:00+00:00"), ("v2", "1970-01-01T00:01:00+00:00")):
        told.serving({"model_version": version, "trained_at": when})
    told.serving({"model_version": "v2", "trained_at": "1970-01-01T00:01:00+00:00"})
    told.refused()

    # Told again, it is never 0 in between.
    assert recorded["mtrec_bundle_info"] == [
        *((1.0, {"version": "v1"}), (0.0, {"version": "v1"})),
        *[(1.0, {"version": "v2"})] * 2,
    ]
    assert [value for value, _ in recorded["mtrec_bundle_trained_timestamp_s"]][-1] == 60.0
    assert recorded["mtrec_bundles_refused"] == [(1.0, None)]
