"""Logging for shells: set-up called once by `cli.py`, `jobs/` and the actors; never on import.

Events, not prose: `event key=value`.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO


def configure_logging(
    *, verbose: bool = False, stream: TextIO | None = None, as_json: bool = False
) -> None:
    """Send mtrec's log lines to stderr, once, however often this is called.

    Args:
        verbose: also what is only of use to who looks for a fault.
        stream: in the place of stderr.
        as_json: one JSON object a line: `time` (ISO 8601, UTC), `level`, `event` and its values.
    """
    logger = logging.getLogger("mtrec")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    # By name: others may have put handlers there, and ours must come once all the same.
    if all(handler.name != "mtrec" for handler in logger.handlers):
        handler = logging.StreamHandler(stream or sys.stderr)
        handler.name = "mtrec"
        plain = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
        handler.setFormatter(JsonFormatter() if as_json else plain)
        logger.addHandler(handler)
    logger.propagate = False


def event(logger: logging.Logger, name: str, /, **values: object) -> None:
    """Log one event as `name key=value key=value`; floats get six significant digits."""
    logger.info(
        "%s",
        " ".join([name, *(f"{key}={_format(value)}" for key, value in values.items())]),
        extra={"event": name, "values": values},
    )


class JsonFormatter(logging.Formatter):
    """Write a record as one JSON object; what is no event has its text under `message`."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        tree: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        if hasattr(record, "event"):
            tree |= {"event": record.event, **getattr(record, "values", {})}
        else:
            tree["message"] = record.getMessage()
        if record.exc_info:
            tree["traceback"] = self.formatException(record.exc_info)
        return json.dumps(tree, ensure_ascii=False, default=str)


@contextmanager
def timed(logger: logging.Logger, stage: str) -> Iterator[dict[str, object]]:
    """Log the start and the end of a stage with its seconds; yields a dict for more values."""
    event(logger, f"{stage}.start")
    values: dict[str, object] = {}
    start = time.monotonic()
    yield values
    event(logger, f"{stage}.done", seconds=round(time.monotonic() - start, 1), **values)


def _format(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
