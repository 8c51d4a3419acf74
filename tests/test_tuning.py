"""The search for settings, on figures whose peak is known."""

from collections.abc import Mapping

import numpy as np
import pytest

from mtrec.tuning import Tuned, search


@pytest.mark.parametrize(
    ("peak", "found"),
    [
        ({"factors": 64, "reg": 20.0}, {"factors": 64, "reg": 20.0}),
        ({"factors": 900, "reg": 2.5}, {"factors": 256, "reg": 2.5}),
        ({"factors": 3, "reg": 9.0}, {"factors": 4, "reg": 10.0}),
        ({"factors": 64, "reg": 1e9}, {"factors": 64, "reg": 640.0}),
    ],
)
def test_tuning_goes_beyond_the_grid_to_the_best_it_can_reach(
    peak: dict[str, float], found: dict[str, float]
) -> None:
    """Steps halve or double, five at most, up to 256 factors; each point is judged once."""
    grid = [
        {"factors": 32, "reg": 10.0},
        {"factors": 128, "reg": 10.0},
        {"factors": 64, "reg": 20.0},
    ]
    asked: list[tuple[float, ...]] = []

    def judge(settings: Mapping[str, float]) -> float:
        asked.append(tuple(settings.values()))
        return -sum(abs(np.log(settings[name] / peak[name])) for name in peak)

    told: list[int] = []
    tuned = search(grid, judge, told.append)
    assert told == list(range(1, tuned.tried + 1))
    assert tuned.settings == found
    assert tuned.value == judge(found)
    assert len(set(asked[:-1])) == len(asked[:-1]) == tuned.tried


def test_of_equally_good_settings_the_first_stays() -> None:
    grid = [{"reg": 1.0}, {"reg": 2.0}]
    assert search(grid, lambda _: 0.5) == Tuned({"reg": 1.0}, 0.5, 3)
