"""mtrec: from raw interaction logs and text to recommendations, on a Ray cluster of any size.

Importing this package imports neither torch nor Ray and touches nothing; the three public names
are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtrec.chain import run
    from mtrec.configfile import load_config
    from mtrec.recommender import Recommender

__version__ = "0.1.0"
__all__ = ["Recommender", "load_config", "run"]

_HOMES = {
    "Recommender": "mtrec.recommender",
    "load_config": "mtrec.configfile",
    "run": "mtrec.chain",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
