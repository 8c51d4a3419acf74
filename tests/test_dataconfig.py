"""The sections about data: splits, moments, columns."""

import pytest
from small_config import tree

from mtrec.configfile import parse_config
from mtrec.dataconfig import GlobalTimeSplit
from mtrec.errors import ConfigError


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"method": "global_time", "test_from": 5}, "both validation_from and test_from"),
        ({"method": "global_time", "validation_from": 9, "test_from": 5}, "must not be after"),
        (
            {"method": "global_time", "validation_from": "soon", "test_from": 5},
            '"soon" is no time',
        ),
        (
            {"method": "global_time", "validation_from": 10, "test_from": 30, "gap_s": 20},
            "gap_s 20 leaves nothing of validation, which lasts 20 s",
        ),
        ({"method": "global_time", "validation": 0.6, "test": 0.4}, "leave a share for training"),
        ({"method": "k_fold", "folds": 5, "fold": 5}, "fold 5 is not one of 0 to 4"),
    ],
)
def test_a_split_that_cannot_be_is_refused(split: dict[str, object], message: str) -> None:
    broken = tree()
    broken["data"]["split"] = split
    with pytest.raises(ConfigError, match=message):
        parse_config(broken)


def test_moments_are_seconds_or_iso_text_in_utc() -> None:
    given = tree()
    moments = {"validation_from": "2026-11-24", "test_from": "2026-11-24T08:00:00+08:00"}
    given["data"]["split"] = {"method": "global_time", **moments}
    split = parse_config(given).data.split
    assert isinstance(split, GlobalTimeSplit)
    assert split.fixed_cuts == (1795478400.0, 1795478400.0)


def test_items_have_no_columns_of_time() -> None:
    broken = tree()
    broken["data"]["items"]["columns"]["day"] = {"kind": "time", "part": "weekday"}
    with pytest.raises(ConfigError, match="which only interactions have"):
        parse_config(broken)
