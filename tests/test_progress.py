import logging
import time

import pytest
import ray

from mtrec.progress import Board, Entry, follow


def _collecting() -> tuple[logging.Logger, list[str]]:
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.Logger("test")
    logger.addHandler(Collect())
    return logger, lines


@pytest.mark.parametrize("here", [True, pytest.param(False, marks=pytest.mark.ray)])
def test_what_is_added_is_logged_in_order_before_the_work_ends(
    here: bool, request: pytest.FixtureRequest
) -> None:
    if not here:
        request.getfixturevalue("ray_local")
    logger, lines = _collecting()
    with follow(logger, "step", total=2, shown=["loss"], here=here) as show:
        show({"epoch": 1, "loss": 0.5})
        show({"epoch": 2, "loss": 0.25})
    assert lines == ["step epoch=1 loss=0.5", "step epoch=2 loss=0.25"]


def test_an_actor_that_is_late_costs_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    since = Board.since

    def late(board: Board, count: int) -> list[Entry]:
        asked.append(count)
        if len(asked) == 1:
            raise ray.exceptions.GetTimeoutError("busy")
        return since(board, count)

    monkeypatch.setattr(Board, "since", late)
    logger, lines = _collecting()
    with follow(logger, "step", total=1, shown=["loss"], here=True) as show:
        show({"epoch": 1, "loss": 0.5})
        for _ in range(500):
            if len(asked) > 1:
                break
            time.sleep(0.01)
    assert lines == ["step epoch=1 loss=0.5"]
