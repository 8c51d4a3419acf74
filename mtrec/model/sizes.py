"""What the data decides about the network: how many items, columns and values there are. Pure."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class TowerSizes:
    """Vocabulary sizes (padding and unknown included) of a table's feature columns."""

    numbers: int = 0
    categories: dict[str, int] = field(default_factory=dict)
    multi: dict[str, int] = field(default_factory=dict)
    text_width: int = 0


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What the data decides about the network; saved with its weights.

    Attributes:
        num_items: rows of every array over items, padding and unknown included.
        items: the items' features.
        users: the users' features.
        event_numbers: number columns of an event, in the order of `event_scaling`.
        event_categories: category columns of an event -> vocabulary size.
        context_numbers: those number columns that are known when a recommendation is asked for.
        context_categories: likewise for categories.
        labels: regression task -> (mean, standard deviation) of its training labels; binary task
            -> (share of ones, 1).
    """

    num_items: int
    items: TowerSizes
    users: TowerSizes
    event_numbers: list[str] = field(default_factory=list)
    event_categories: dict[str, int] = field(default_factory=dict)
    context_numbers: list[str] = field(default_factory=list)
    context_categories: list[str] = field(default_factory=list)
    labels: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give JSON-like values that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Self:
        """Read what `to_json` gave."""
        values = dict(tree)
        values["items"] = TowerSizes(**values["items"])
        values["users"] = TowerSizes(**values["users"])
        values["labels"] = {name: (a, b) for name, (a, b) in values["labels"].items()}
        return cls(**values)
