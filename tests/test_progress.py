import logging

import pytest

from mtrec.progress import follow


@pytest.mark.parametrize("here", [True, pytest.param(False, marks=pytest.mark.ray)])
def test_what_is_added_is_logged_in_order_before_the_work_ends(
    here: bool, request: pytest.FixtureRequest
) -> None:
    if not here:
        request.getfixturevalue("ray_local")
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.Logger("test")
    logger.addHandler(Collect())
    with follow(logger, "step", total=2, shown=["loss"], here=here) as show:
        show({"epoch": 1, "loss": 0.5})
        show({"epoch": 2, "loss": 0.25})
    assert lines == ["step epoch=1 loss=0.5", "step epoch=2 loss=0.25"]
