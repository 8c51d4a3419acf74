import logging

import pytest

from mtrec.progress import follow


@pytest.mark.ray
def test_what_workers_add_is_logged_in_order_before_the_work_ends(ray_local) -> None:
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.Logger("test")
    logger.addHandler(Collect())
    with follow(logger, "step", total=2, shown=["loss"]) as board:
        board.add.remote({"epoch": 1, "loss": 0.5})
        board.add.remote({"epoch": 2, "loss": 0.25})
    assert lines == ["step epoch=1 loss=0.5", "step epoch=2 loss=0.25"]
