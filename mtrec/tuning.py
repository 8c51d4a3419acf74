"""Choosing settings by one figure: over a small grid, then from its best point on to better ones.

What is fitted and judged is `baselines.py`'s affair. Pure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Settings = Mapping[str, float]
Watch = Callable[[int], None]
"""Is told how many settings were tried, after each of them."""

_MOST_MOVES = 5
_COUNTS = ("factors", "neighbours")
# A fit's time grows with their third power.
_MOST_FACTORS = 256


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning chose, by which figure, and all that was tried."""

    settings: dict[str, float]
    value: float
    tried: int


def search(
    options: Sequence[dict[str, float]],
    judge: Callable[[Settings], float],
    watch: Watch | None = None,
) -> Tuned:
    """Choose what is judged highest: of the options, then of what lies around the best.

    Around a point lie those with one setting halved or doubled. As long as one of them is better,
    the best of them is gone to, `_MOST_MOVES` times at most. Of equals the first stays.
    """
    judged: dict[tuple[tuple[str, float], ...], float] = {}

    def best_of(tried: Sequence[dict[str, float]]) -> dict[str, float]:
        for settings in tried:
            key = tuple(settings.items())
            if key not in judged:
                judged[key] = judge(settings)
                if watch is not None:
                    watch(len(judged))
        return max(tried, key=lambda settings: judged[tuple(settings.items())])

    best = best_of(options)
    for _ in range(_MOST_MOVES):
        better = best_of([best, *_around(best)])
        if better == best:
            break
        best = better
    return Tuned(best, judged[tuple(best.items())], len(judged))


def _around(settings: Settings) -> list[dict[str, float]]:
    """Give the settings with one of them halved or doubled; counts stay whole."""
    around: list[dict[str, float]] = []
    for name, value in settings.items():
        half = value // 2 if name in _COUNTS else value / 2
        around += [{**settings, name: other} for other in (half, 2 * value) if other > 0]
    return [other for other in around if other.get("factors", 0) <= _MOST_FACTORS]
