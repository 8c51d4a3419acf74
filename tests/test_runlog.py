"""Log lines are events, set up once; metrics are one JSON object a line."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from mtrec.runlog import configure_logging, event, timed


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Log to memory, with the logger as it is before any set-up."""
    logger = logging.getLogger("mtrec")
    saved = (logger.handlers[:], logger.level, logger.propagate)
    logger.handlers[:] = []
    yield io.StringIO()
    logger.handlers[:], logger.level, logger.propagate = saved


def test_an_event_is_one_line_of_keys_and_values_with_six_digits(stream: io.StringIO) -> None:
    configure_logging(stream=stream)

    event(logging.getLogger("mtrec.train"), "train.epoch", epoch=3, loss=1 / 3, best=None)

    time, _, line = stream.getvalue().partition(" ")
    assert line == "train.epoch epoch=3 loss=0.333333 best=None\n"
    assert len(time.split(":")) == 3


def test_set_up_twice_logs_once(stream: io.StringIO) -> None:
    configure_logging(stream=stream)
    configure_logging(stream=stream)

    event(logging.getLogger("mtrec"), "once")

    assert stream.getvalue().count("once") == 1


def test_debug_lines_show_only_when_verbose(stream: io.StringIO) -> None:
    configure_logging(stream=stream)
    logging.getLogger("mtrec").debug("hidden")
    configure_logging(verbose=True, stream=stream)
    logging.getLogger("mtrec").debug("shown")

    assert "hidden" not in stream.getvalue()
    assert "shown" in stream.getvalue()


def test_a_timed_stage_logs_its_start_its_end_and_what_the_body_adds(stream: io.StringIO) -> None:
    configure_logging(stream=stream)

    with timed(logging.getLogger("mtrec"), "embed") as values:
        values["texts"] = 7

    first, second = (line.partition(" ")[2] for line in stream.getvalue().splitlines())
    assert first == "embed.start"
    assert second == "embed.done seconds=0 texts=7"


def test_a_stage_that_fails_is_not_logged_as_done(stream: io.StringIO) -> None:
    configure_logging(stream=stream)

    with pytest.raises(ValueError, match="boom"), timed(logging.getLogger("mtrec"), "train"):
        raise ValueError("boom")

    assert "train.done" not in stream.getvalue()


def test_a_handler_of_others_does_not_keep_ours_away(stream: io.StringIO) -> None:
    logging.getLogger("mtrec").addHandler(logging.NullHandler())
    configure_logging(stream=stream)

    event(logging.getLogger("mtrec"), "heard")

    assert "heard" in stream.getvalue()


def test_as_json_a_line_is_an_object_with_the_events_values(stream: io.StringIO) -> None:
    configure_logging(stream=stream, as_json=True)
    logger = logging.getLogger("mtrec.serve")

    event(logger, "request", id="a b", route="/v1/recommend", status=200, ms=1.5)
    logger.error("bundle.refused path=%s", "/x")
    try:
        raise ValueError("毛衣")
    except ValueError:
        logger.exception("failed")

    first, second, third = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["id"], first["status"], first["ms"]) == (
        *("request", "a b", 200, 1.5),
    )
    assert first["time"].endswith("+00:00")
    assert (second["level"], second["message"]) == ("error", "bundle.refused path=/x")
    assert "毛衣" in third["traceback"]
