"""The sections of a configuration that say what is predicted, and by what model.

Part of the one schema, see `config.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from mtrec.dataconfig import Fraction, Name, Section
from mtrec.labels import parse_label

# ---- tasks --------------------------------------------------------------------------------------


class _Task(Section):
    name: Name
    weight: float = Field(1.0, ge=0.0)
    """Weight of the task's loss, after each loss is divided by that of a constant predictor."""


class RetrievalTask(_Task):
    kind: Literal["retrieval"]


class RegressionTask(_Task):
    kind: Literal["regression"]
    label: str
    """A number column of the interactions."""
    min: float
    """Smallest possible label; with `max` it maps predictions to [0, 1] in blended scores."""
    max: float
    """Largest possible label."""

    @model_validator(mode="after")
    def _check(self) -> "RegressionTask":
        if self.min >= self.max:
            raise ValueError(f"min {self.min} must be below max {self.max}")
        if parse_label(self.label).operator is not None:
            raise ValueError(f'label "{self.label}" must be a column for a regression task')
        return self


class BinaryTask(_Task):
    kind: Literal["binary"]
    label: str
    """An expression such as `rating >= 4`, or a number column that holds 0 and 1."""

    @model_validator(mode="after")
    def _check(self) -> "BinaryTask":
        parse_label(self.label)
        return self


class SocialTask(_Task):
    kind: Literal["social"]
    """Which users a user is linked to, from `data.social`; lists of friends."""


Task = Annotated[
    RetrievalTask | RegressionTask | BinaryTask | SocialTask, Field(discriminator="kind")
]
LabelTask = RegressionTask | BinaryTask
"""A task that predicts a label of a user and an item: the ranking network has a head for it."""


def label_tasks(tasks: Sequence[Task]) -> list[LabelTask]:
    """List the tasks that predict labels, in their order."""
    return [task for task in tasks if isinstance(task, RegressionTask | BinaryTask)]


def social_task(tasks: Sequence[Task]) -> SocialTask | None:
    """Give the task that recommends friends; None: there is none."""
    return next((task for task in tasks if isinstance(task, SocialTask)), None)


# ---- model and training -------------------------------------------------------------------------


class SequenceHistory(Section):
    kind: Literal["sequence"] = "sequence"
    num_blocks: int = Field(2, ge=1, le=12)
    """Transformer blocks."""
    num_heads: int = Field(2, ge=1, le=16)
    """Attention heads; must divide `model.embedding_dim`."""
    length: int = Field(100, ge=2, le=4096)
    """The latest events of a user that the model sees."""
    dropout: Fraction = 0.2


class SetHistory(Section):
    kind: Literal["set"]
    num_blocks: int = Field(1, ge=0, le=12)
    """Feed-forward blocks above the pooled events."""
    length: int = Field(1000, ge=2, le=65_536)
    """The latest events of a user that the model sees; which of them came first does not count."""
    held_out: float = Field(0.3, gt=0.0, lt=1.0)
    """Share of a window's items that a training step hides and predicts from the others."""
    dropout: Fraction = 0.2


class SharedBottom(Section):
    kind: Literal["shared_bottom"] = "shared_bottom"
    hidden: list[Annotated[int, Field(ge=1)]] = Field([128, 64], min_length=1)
    """Widths of the layers that all ranking tasks share."""
    dropout: Fraction = 0.1


class MMoEExperts(Section):
    kind: Literal["mmoe"]
    num_experts: int = Field(4, ge=1, le=64)
    """Experts, all of them shared; each task mixes them by a gate of its own."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field([128, 64], min_length=1)
    """Widths of each expert's layers."""
    dropout: Fraction = 0.1


class PLEExperts(Section):
    kind: Literal["ple"]
    num_shared: int = Field(2, ge=1, le=64)
    """Experts in a level that every task reads."""
    num_specific: int = Field(2, ge=1, le=64)
    """Experts in a level for each task, which no other task reads."""
    num_levels: int = Field(1, ge=1, le=8)
    """Extraction levels; each has experts of its own."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field([128, 64], min_length=1)
    """Widths of each expert's layers."""
    dropout: Fraction = 0.1


def by_kind(*known: str) -> Discriminator:
    """Tell a union's sections apart by `kind`; one that names none is of the first kind."""

    def read(section: Any) -> Any:
        if isinstance(section, dict):
            return section.get("kind", known[0])
        return getattr(section, "kind", None)

    return Discriminator(
        read,
        custom_error_type="unknown_kind",
        custom_error_message=f"expected a section whose kind is one of {', '.join(known)}",
    )


History = Annotated[
    Annotated[SequenceHistory, Tag("sequence")] | Annotated[SetHistory, Tag("set")],
    by_kind("sequence", "set"),
]
Experts = Annotated[
    Annotated[SharedBottom, Tag("shared_bottom")]
    | Annotated[MMoEExperts, Tag("mmoe")]
    | Annotated[PLEExperts, Tag("ple")],
    by_kind("shared_bottom", "mmoe", "ple"),
]


class ItemItemTerm(Section):
    amount: str | None = None
    """Number column of the interactions, 0 or more, that says how much an event counts, such as a
    rating or a count of plays: its value over the mean. None: all events count alike."""
    top: int = Field(400, ge=1)
    """Weights kept for an item, those that are largest in size."""
    reg: list[Annotated[float, Field(gt=0.0)]] = Field([100.0, 300.0, 1000.0], min_length=1)
    """Ridges that are tried on validation."""
    scales: list[Annotated[float, Field(gt=0.0)]] = Field(
        [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0], min_length=1
    )
    """Factors from its scores to logits that are tried on validation, besides leaving it out."""
    max_items: int = Field(50_000, ge=1)
    """Larger catalogues are fitted without it, aloud: its cost grows with their square."""
    name: ClassVar[str] = "item_item"

    def narrowed(self, settings: Mapping[str, float]) -> Self:
        """Give the term that tries these settings alone."""
        return self.model_copy(update={"reg": [settings["reg"]]})


class NextItemTerm(Section):
    top: int = Field(400, ge=1)
    """Weights kept for an item, those that are largest in size."""
    half_lives: list[Annotated[float, Field(gt=0.0)]] = Field([2.0, 4.0, 8.0, 16.0], min_length=1)
    """Half-lives of an event's weight that are tried on validation, in later events of the user."""
    reg: list[Annotated[float, Field(gt=0.0)]] = Field([30.0, 100.0, 300.0], min_length=1)
    """Ridges that are tried on validation."""
    scales: list[Annotated[float, Field(gt=0.0)]] = Field(
        [16.0, 32.0, 64.0, 128.0, 256.0, 1024.0], min_length=1
    )
    """Factors from its scores to logits that are tried on validation, besides leaving it out."""
    max_items: int = Field(20_000, ge=1)
    """Larger catalogues are fitted without it, aloud: its cost grows with their square, 12 GiB at
    20,000 items."""
    name: ClassVar[str] = "next_item"

    def narrowed(self, settings: Mapping[str, float]) -> Self:
        """Give the term that tries these settings alone."""
        lists = {"half_lives": [settings["half_life"]], "reg": [settings["reg"]]}
        return self.model_copy(update=lists)


class IalsSettings(Section):
    factors: int = Field(32, ge=1, le=1024)
    """Numbers of an item."""
    alpha: float = Field(5.0, gt=0.0)
    """Confidence of a pair that met; one that did not has 1."""
    reg: float = Field(30.0, gt=0.0)
    """The ridge; a higher alpha wants a higher one."""


class IalsTerm(Section):
    tried: list[IalsSettings] = Field(
        [
            IalsSettings(factors=32, alpha=5.0, reg=30.0),
            IalsSettings(factors=128, alpha=20.0, reg=60.0),
            IalsSettings(factors=32, alpha=2.0, reg=10.0),
            IalsSettings(factors=128, alpha=5.0, reg=10.0),
        ],
        min_length=1,
    )
    """Settings that are tried on validation."""
    scales: list[Annotated[float, Field(gt=0.0)]] = Field(
        [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0], min_length=1
    )
    """Factors from its scores to logits that are tried on validation, besides leaving it out."""
    ridges: list[Annotated[float, Field(gt=0.0)]] = Field([10.0])
    """Ridges that are tried on validation for telling the factors of items that nobody met from
    their texts, besides telling nothing of them."""


class RecencyTerm(Section):
    half_lives: list[Annotated[float, Field(gt=0.0)]] = Field(
        [0.02, 0.05, 0.1, 0.2, 0.4], min_length=1
    )
    """Half-lives of an event's weight that are tried on validation: shares of the training events'
    span of time."""
    scales: list[Annotated[float, Field(gt=0.0)]] = Field(
        [0.5, 1.0, 2.0, 4.0, 8.0, 16.0], min_length=1
    )
    """Factors from log(1 + count) to logits that are tried on validation, besides leaving it out.
    """


class FactorsTerm(Section):
    column: str
    """Number column of the interactions that users and items are factorised by, such as rating."""
    rank: int = Field(16, ge=1, le=256)
    """Factors of a user and of an item."""
    draws: int = Field(32, ge=1)
    """Draws of the items' vectors that are kept; a bundle grows by 4 bytes x draws x rank an item.
    """
    burn_in: int = Field(20, ge=0)
    """Sweeps of the sampler before the first draw that is kept."""
    length: int = Field(1000, ge=1)
    """The latest events of a user that are read, whatever the network sees of them."""
    thin: int = Field(4, ge=1)
    """Sweeps from one draw that is kept to the next."""


class ModelConfig(Section):
    embedding_dim: int = Field(64, ge=4, le=1024)
    """Width of user and item vectors."""
    text_dim: int = Field(128, ge=4)
    """Text vectors are whitened to so many directions at most."""
    taste_dim: int = Field(16, ge=1, le=1024)
    """Width of the SVD++-like part of the ranking network."""
    id_dropout: Fraction = 0.2
    """Share of collaborative item rows hidden in a step, so that content stands alone."""
    history: History = SequenceHistory()
    """How a user's events are read: in their order, or as a set."""
    experts: Experts = SharedBottom()
    """What the ranking tasks share: one stack of layers, MMoE or PLE."""
    item_item: ItemItemTerm | None = None
    """Add an item-item term (EASE) to the retrieval logits: for data whose order means nothing."""
    next_item: NextItemTerm | None = None
    """Add ridge regression of the next item on what came before to the retrieval logits: for data
    in order, where `item_item` is for data without."""
    ials: IalsTerm | None = None
    """Add factors of implicit feedback (iALS) to the retrieval logits, beside one of those two."""
    recency: RecencyTerm | None = None
    """Add recent popularity to the retrieval logits: where what is asked for changes with time and
    many users are new, as with a split by global time."""
    factors: FactorsTerm | None = None
    """Add Bayesian matrix factorisation to the ranking tasks: where users say a number of items."""

    @property
    def kept_events(self) -> int:
        """Latest events of a user that any part of the model reads, and that a bundle keeps."""
        return max(self.history.length, self.factors.length if self.factors is not None else 0)

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.history.kind == "sequence" and self.embedding_dim % self.history.num_heads:
            raise ValueError(
                f"embedding_dim {self.embedding_dim} must be a multiple of history.num_heads "
                f"{self.history.num_heads}"
            )
        if self.next_item is not None and self.history.kind == "set":
            raise ValueError(
                "next_item is for events in order, and history.kind set says that there is none: "
                "use item_item"
            )
        if self.next_item is not None and self.item_item is not None:
            raise ValueError(
                "next_item and item_item exclude each other: keep next_item where events are in "
                "order, item_item where not"
            )
        return self
