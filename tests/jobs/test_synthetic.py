"""The generated log: as many rows as asked for, the same each time, and a run that reads it."""

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import _synthetic
import pytest
from _synthetic import write_log

from mtrec.configfile import parse_config


def test_a_log_is_as_long_as_asked_for_and_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_synthetic, "_EVENTS_PER_CHUNK", 300)
    tree = write_log(tmp_path / "a.csv", 1000)
    write_log(tmp_path / "b.csv", 1000)

    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    log = pd.read_csv(tmp_path / "a.csv")
    assert len(log) == 1000 and log.rating.between(1, 5).all()
    # Zipf's law: the most frequent user has far more than 1 in 100.
    assert log.user_id.value_counts().iloc[0] > 100
    assert parse_config(tree).data.interactions.path == str(tmp_path / "a.csv")
