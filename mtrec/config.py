"""The whole run as one frozen tree of pydantic models: the only schema, the only defaults.

Every field is bounded and says its unit and effect; impossible combinations cannot be written down
or are refused here with the reason. Nothing below this layer has hidden defaults. `configfile.py`
reads and writes it.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunConfig(_Section):
    workdir: str = "runs/default"
    """Folder or URI that receives every artifact of the run."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides ties in time, random splits, initial weights and the order of batches."""
    storage: str | None = None
    """Where Ray Train keeps checkpoints; by default `checkpoints/` in the workdir."""

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        for name in ("workdir", "storage"):
            place = getattr(self, name)
            if place is not None and re.match(r"[a-z][a-z0-9+]+:/(?!/)", place):
                raise ValueError(f'{name} "{place}" looks like a URI with one slash; write ://')
        return self


# ---- data ---------------------------------------------------------------------------------------


class Outliers(_Section):
    method: Literal["zscore", "iqr"]
    """`zscore`: further from the mean than `threshold` standard deviations; `iqr`: further than
    `threshold` interquartile ranges below the first or above the third quartile. Of interactions
    the training rows decide, of items and users all rows."""
    threshold: float | None = Field(None, gt=0.0)
    """Default: 3 for zscore, 1.5 for iqr."""
    action: Literal["clip", "reject", "keep"] = "clip"
    """`clip`: the value becomes the bound, in requests too; `reject`: the row is set aside; `keep`:
    outliers are only counted in `dataset/report.json`."""

    @property
    def limit(self) -> float:
        """The threshold, or its default."""
        return self.threshold or (3.0 if self.method == "zscore" else 1.5)


class NumberColumn(_Section):
    kind: Literal["number"]
    source: str | None = None
    """Name of the column in the file; by default the same name."""
    min: float | None = None
    """Smallest possible value; rows below are set aside."""
    max: float | None = None
    """Largest possible value; rows above are set aside."""
    missing: Literal["mean", "median", "mode", "constant", "reject", "keep"] = "mean"
    """What an empty cell becomes: a statistic of the training rows, `constant`, a set-aside row,
    or `keep` (it stays missing; for labels)."""
    constant: float = 0.0
    """The value for `missing: constant`."""
    outliers: Outliers | None = None
    """What is done with extreme values; by default nothing."""
    scale: Literal["standard", "minmax", "none"] = "standard"
    """How the value enters the model; fitted on training rows, after outliers and missing values.
    """
    context: bool = False
    """Interactions only: known when the recommendation is asked for (time, place, device)."""

    @model_validator(mode="after")
    def _check(self) -> "NumberColumn":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: no row could be kept")
        return self


class CategoryColumn(_Section):
    kind: Literal["category"]
    source: str | None = None
    """Name of the column in the file; by default the same name."""
    missing: Literal["category", "mode", "constant", "reject"] = "category"
    """What an empty cell becomes: a category of its own, the most frequent one, `constant`, or a
    set-aside row."""
    constant: str = ""
    """The value for `missing: constant`."""
    min_count: int = Field(1, ge=1)
    """Categories seen fewer times in training count as unknown."""
    context: bool = False
    """Interactions only: known when the recommendation is asked for (time, place, device)."""


class CategoriesColumn(_Section):
    kind: Literal["categories"]
    source: str | None = None
    """Name of the column in the file; by default the same name."""
    separator: str = Field("|", min_length=1)
    """What stands between the values of one cell; a list in Parquet or JSONL needs none."""
    min_count: int = Field(1, ge=1)
    """Categories seen fewer times in training count as unknown."""


class TextColumn(_Section):
    kind: Literal["text"]
    source: str | None = None
    """Name of the column in the file; by default the same name."""
    missing: Literal["empty", "reject"] = "empty"
    """What an empty cell becomes: the empty text, or a set-aside row."""


class TimeColumn(_Section):
    kind: Literal["time"]
    """Interactions only: a part of the event's time as a category that is known when the
    recommendation is asked for; a request says it in `context`."""
    part: Literal["hour", "weekday", "month"]
    """`hour`: 0 to 23; `weekday`: monday to sunday; `month`: 1 to 12."""
    utc_offset_h: float = Field(0.0, ge=-14.0, le=14.0)
    """Hours that local clocks are ahead of UTC."""

    @property
    def context(self) -> bool:
        """Time is always known beforehand."""
        return True


Column = Annotated[
    NumberColumn | CategoryColumn | CategoriesColumn | TextColumn | TimeColumn,
    Field(discriminator="kind"),
]


class _Table(_Section):
    path: str
    """File, folder or glob; relative ones start at `data.root`."""
    format: Literal["auto", "csv", "parquet", "jsonl"] = "auto"
    """By default told from the file's ending; anything unknown is read as CSV."""
    delimiter: str = Field(",", min_length=1, max_length=1)
    """CSV: what stands between two fields."""
    encoding: str = "utf-8"
    """CSV and JSONL: the text encoding; rows that do not decode are set aside."""
    id_type: Literal["auto", "string", "integer"] = "auto"
    """Type of the ids in answers; `auto`: the type in Parquet and JSONL, string in CSV."""
    columns: dict[Name, Column] = {}
    """Further columns to read, by the name that mtrec shall use."""


class InteractionsTable(_Table):
    user_id: str = "user_id"
    """Column with the user's id."""
    item_id: str = "item_id"
    """Column with the item's id."""
    timestamp: str | None = None
    """Column with the time: seconds since 1970 or ISO 8601; without it the order is the file's."""
    latest_time: datetime | None = None
    """Events after this moment are set aside as being in the future, say `2026-11-25` for a log
    that ends before (UTC unless it says otherwise). By default only those after the year 2099 are:
    a bound that follows the clock would give another dataset on another day."""
    split: str | None = None
    """Column that holds train, validation or test, for `split.method: column`."""

    @model_validator(mode="after")
    def _check(self) -> "InteractionsTable":
        for name, column in self.columns.items():
            if column.kind not in ("number", "category", "time"):
                raise ValueError(
                    f"columns.{name} has kind {column.kind}; an interaction's columns are "
                    "number, category or time"
                )
            if column.kind == "time" and self.timestamp is None:
                raise ValueError(f"columns.{name} has kind time: name the column in timestamp")
        return self


def _refuse_time(columns: dict[str, Column]) -> None:
    for name, column in columns.items():
        if column.kind == "time":
            raise ValueError(f"columns.{name} has kind time, which only interactions have")


class ItemsTable(_Table):
    item_id: str = "item_id"
    """Column with the item's id."""

    @model_validator(mode="after")
    def _check(self) -> "ItemsTable":
        _refuse_time(self.columns)
        return self


class UsersTable(_Table):
    user_id: str = "user_id"
    """Column with the user's id."""

    @model_validator(mode="after")
    def _check(self) -> "UsersTable":
        _refuse_time(self.columns)
        return self


class SocialTable(_Table):
    user_id: str = "user_id"
    """Column with one end of a link between two users."""
    friend_id: str = "friend_id"
    """Column with the other end; a link has no direction."""
    validation: Fraction = 0.1
    """Share of links held out for validation, drawn by a hash of the seed and both ids."""
    test: Fraction = 0.1
    """Share of links held out for test."""

    @model_validator(mode="after")
    def _check(self) -> "SocialTable":
        if self.columns:
            raise ValueError("columns: a link has two ends and nothing else; leave columns out")
        if self.validation + self.test >= 1.0:
            raise ValueError("validation + test must leave a share for training (below 1)")
        return self


class QualityConfig(_Section):
    duplicate_key: Literal["user_item_time", "user_item"] = "user_item_time"
    """Which interactions are the same event; the others of such a group are duplicates."""
    keep: Literal["last", "first", "mean"] = "last"
    """Which of a group of duplicates stays: by time, then by place in the source; `mean`: the last,
    with the mean of each number column over the group."""
    unknown_items: Literal["reject", "keep"] = "reject"
    """What happens to an interaction whose item is not in the items table, if there is one."""
    unknown_users: Literal["reject", "keep"] = "reject"
    """What happens to an interaction whose user is not in the users table, if there is one."""
    max_rejected_fraction: float = Field(0.5, ge=0.0, le=1.0)
    """If more than this share of a table's rows is set aside, `prepare` stops and lists the
    reasons; 1: never."""


class LeaveLastOutSplit(_Section):
    method: Literal["leave_last_out"]
    """Per user: the last event is test, the last but one validation, the rest train; ties in time
    are put in an order that the seed decides. Users with fewer than 3 events are all train."""


class RandomSplit(_Section):
    method: Literal["random"]
    """Each event is drawn by a hash of the seed, its user and its item."""
    validation: Fraction = 0.1
    """Share of events for validation."""
    test: Fraction = 0.1
    """Share of events for test."""

    @model_validator(mode="after")
    def _check(self) -> "RandomSplit":
        if self.validation + self.test >= 1.0:
            raise ValueError("validation + test must leave a share for training (below 1)")
        return self


class GlobalTimeSplit(_Section):
    method: Literal["global_time"]
    """Two moments cut the log for all users: what comes before the first is train, between them
    validation, from the second on test. Needs times."""
    validation: Fraction = 0.1
    """Share of events for validation; decides its moment."""
    test: Fraction = 0.1
    """Share of events for test; decides its moment."""
    validation_from: float | str | None = None
    """First moment of validation, instead of the shares: seconds since 1970 or ISO 8601."""
    test_from: float | str | None = None
    """First moment of test; with `validation_from`."""
    gap_s: float = Field(0.0, ge=0.0)
    """Events so many seconds before either moment are set aside, so that nothing known on the eve
    is evaluated."""

    @model_validator(mode="after")
    def _check(self) -> "GlobalTimeSplit":
        moments = (self.validation_from, self.test_from)
        if (None in moments) != (moments == (None, None)):
            raise ValueError("give both validation_from and test_from, or neither")
        fixed = self.fixed_cuts
        if fixed is not None and not fixed[0] <= fixed[1]:
            raise ValueError(
                f"validation_from {moments[0]} must not be after test_from {moments[1]}"
            )
        if self.validation + self.test >= 1.0:
            raise ValueError("validation + test must leave a share for training (below 1)")
        return self

    @property
    def fixed_cuts(self) -> tuple[float, float] | None:
        """The two moments in seconds since 1970, if they are given."""
        if self.validation_from is None or self.test_from is None:
            return None
        return _seconds(self.validation_from), _seconds(self.test_from)


class KFoldSplit(_Section):
    method: Literal["k_fold"]
    """Cross-validation: events are drawn into folds by a hash of the seed, user and item; each
    fold is the test split of a run of its own, and the report gives means and deviations."""
    folds: int = Field(5, ge=2, le=100)
    """Number of folds."""
    fold: int | None = Field(None, ge=0)
    """Run this fold alone; by default all, below `folds/` in the workdir."""
    validation: Fraction = 0.1
    """Share of the other folds' events for validation."""

    @model_validator(mode="after")
    def _check(self) -> "KFoldSplit":
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not one of 0 to {self.folds - 1}")
        return self


class ColumnSplit(_Section):
    method: Literal["column"]
    """The column `data.interactions.split` holds train, validation or test."""


Split = Annotated[
    LeaveLastOutSplit | GlobalTimeSplit | RandomSplit | KFoldSplit | ColumnSplit,
    Field(discriminator="method"),
]


def _seconds(moment: float | str) -> float:
    if not isinstance(moment, str):
        return moment
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        raise ValueError(f'"{moment}" is no time: give seconds since 1970 or ISO 8601') from None
    return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()


class DataConfig(_Section):
    source: Literal["movielens-100k"] | None = None
    """A public data set by name, fetched on first use; relative paths then start in its folder."""
    root: str | None = None
    """Folder that relative paths start in; by default the source's, else the current one."""
    interactions: InteractionsTable
    items: ItemsTable | None = None
    """What is known of items; without it the catalogue is what training interactions name."""
    users: UsersTable | None = None
    """What is known of users."""
    social: SocialTable | None = None
    """Who is whose friend, for a task of kind social."""
    quality: QualityConfig = QualityConfig()
    split: Split = LeaveLastOutSplit(method="leave_last_out")


# ---- text ---------------------------------------------------------------------------------------


class BehaviourText(_Section):
    item_column: str = "title"
    """Items column that names an item in the text."""
    liked: str = "rating >= 4"
    """Expression over an interaction column: events told as liked."""
    disliked: str | None = None
    """Expression over an interaction column: events told as disliked."""
    max_items: int = Field(20, ge=1, le=200)
    """At most so many items, the latest ones, are named."""

    @model_validator(mode="after")
    def _check(self) -> "BehaviourText":
        for text in (self.liked, self.disliked):
            if text is not None:
                parse_label(text)
        return self


class TextConfig(_Section):
    item_template: str | None = None
    """Text of an item, such as `{title} | {genres}`; None: items have no text."""
    user_template: str | None = None
    """Text of a user from the users table; None: users have no profile text."""
    behaviour: BehaviourText | None = None
    """Tell part of a user's training events as text, so that a text alone can stand for a user."""
    encoder: str = "all-minilm-l6-v2"
    """`all-minilm-l6-v2` (bundled), `hashing` (no language model), a folder or a model name."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """How token vectors become one: mean, first token, or last token (decoders)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU per actor if the cluster has one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; `auto`: bfloat16 on a GPU, float32 on a CPU."""
    max_tokens: int = Field(256, ge=8, le=8192)
    """Longer texts are cut."""
    batch_tokens: int | None = Field(None, ge=64)
    """Tokens in one batch, padding included; texts of like length share a batch. Default: 2,048 on
    a CPU, 65,536 on a GPU."""
    actors: int = Field(1, ge=1)
    """Encoder actors at most."""
    dimension: int = Field(256, ge=8, le=4096)
    """Width of the hashing encoder's vectors; a language model brings its own."""
    store: str | None = None
    """Folder or URI of the vectors, to share them between runs; default `embeddings/` in the
    workdir."""


# ---- tasks --------------------------------------------------------------------------------------


class _Task(_Section):
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


class SequenceHistory(_Section):
    kind: Literal["sequence"] = "sequence"
    num_blocks: int = Field(2, ge=1, le=12)
    """Transformer blocks."""
    num_heads: int = Field(2, ge=1, le=16)
    """Attention heads; must divide `model.embedding_dim`."""
    length: int = Field(100, ge=2, le=4096)
    """The latest events of a user that the model sees."""
    dropout: Fraction = 0.2


class SetHistory(_Section):
    kind: Literal["set"]
    num_blocks: int = Field(1, ge=0, le=12)
    """Feed-forward blocks above the pooled events."""
    length: int = Field(1000, ge=2, le=65_536)
    """The latest events of a user that the model sees; which of them came first does not count."""
    held_out: float = Field(0.3, gt=0.0, lt=1.0)
    """Share of a window's items that a training step hides and predicts from the others."""
    dropout: Fraction = 0.2


class SharedBottom(_Section):
    kind: Literal["shared_bottom"] = "shared_bottom"
    hidden: list[Annotated[int, Field(ge=1)]] = Field([128, 64], min_length=1)
    """Widths of the layers that all ranking tasks share."""
    dropout: Fraction = 0.1


class MMoEExperts(_Section):
    kind: Literal["mmoe"]
    num_experts: int = Field(4, ge=1, le=64)
    """Experts, all of them shared; each task mixes them by a gate of its own."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field([128, 64], min_length=1)
    """Widths of each expert's layers."""
    dropout: Fraction = 0.1


class PLEExperts(_Section):
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


def _kind(*known: str) -> Discriminator:
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
    _kind("sequence", "set"),
]
Experts = Annotated[
    Annotated[SharedBottom, Tag("shared_bottom")]
    | Annotated[MMoEExperts, Tag("mmoe")]
    | Annotated[PLEExperts, Tag("ple")],
    _kind("shared_bottom", "mmoe", "ple"),
]


class ItemItemTerm(_Section):
    top: int = Field(400, ge=1)
    """Weights kept for an item, those that are largest in size."""
    reg: list[Annotated[float, Field(gt=0.0)]] = Field([100.0, 300.0, 1000.0], min_length=1)
    """Ridges that are tried on validation."""
    scales: list[Annotated[float, Field(gt=0.0)]] = Field([2.0, 4.0, 8.0, 16.0, 32.0], min_length=1)
    """Factors from its scores to logits that are tried on validation, besides leaving it out."""
    max_items: int = Field(50_000, ge=1)
    """Larger catalogues are fitted without it, aloud: its cost grows with their square."""


class IalsSettings(_Section):
    factors: int = Field(32, ge=1, le=1024)
    """Numbers of an item."""
    alpha: float = Field(5.0, gt=0.0)
    """Confidence of a pair that met; one that did not has 1."""
    reg: float = Field(30.0, gt=0.0)
    """The ridge; a higher alpha wants a higher one."""


class IalsTerm(_Section):
    tried: list[IalsSettings] = Field(
        [
            IalsSettings(factors=32, alpha=5.0, reg=30.0),
            IalsSettings(factors=128, alpha=20.0, reg=60.0),
        ],
        min_length=1,
    )
    """Settings that are tried on validation."""
    scales: list[Annotated[float, Field(gt=0.0)]] = Field([1.0, 2.0, 4.0, 8.0, 16.0], min_length=1)
    """Factors from its scores to logits that are tried on validation, besides leaving it out."""


class FactorsTerm(_Section):
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


class ModelConfig(_Section):
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
    ials: IalsTerm | None = None
    """Add factors of implicit feedback (iALS) to the retrieval logits, beside `item_item`."""
    factors: FactorsTerm | None = None
    """Add Bayesian matrix factorisation to the ranking tasks: where users say a number of items."""
    w_content: float = Field(0.2, ge=0.0)
    """Weight of the content-only retrieval loss."""
    w_collaborative: float = Field(0.2, ge=0.0)
    """Weight of the collaborative-only retrieval loss."""
    w_fused: float = Field(1.0, gt=0.0)
    """Weight of the retrieval loss of the sum of both."""

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
        return self


class FullSoftmax(_Section):
    kind: Literal["full"] = "full"


class SampledSoftmax(_Section):
    kind: Literal["sampled"]
    num_negatives: int = Field(1000, ge=1)
    """Items drawn in each step, for all its targets together."""
    distribution: Literal["uniform", "popularity"] = "uniform"
    """`uniform`: each item alike; `popularity`: by its training events, which needs fewer draws
    where few items are most of what is met. Either is corrected for (logQ)."""


Softmax = Annotated[
    Annotated[FullSoftmax, Tag("full")] | Annotated[SampledSoftmax, Tag("sampled")],
    _kind("full", "sampled"),
]


class TrainConfig(_Section):
    epochs: int = Field(60, ge=1)
    """Passes over the training windows at most."""
    batch_size: int = Field(32, ge=1)
    """Windows in one global batch; workers share it evenly, so it must be a multiple of them."""
    learning_rate: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.01, ge=0.0)
    """Of layers; not applied to embeddings, biases and norms."""
    ranking_decay: float = Field(0.1, ge=0.0)
    """Weight decay of the ranking network's item tables, as regularisation is in SVD++."""
    warmup_steps: int = Field(100, ge=0)
    clip_norm: float = Field(1.0, gt=0.0)
    """Largest norm of the whole gradient."""
    ema_decay: Fraction = 0.99
    """Decay of the moving average of the weights, which is what is validated and exported; 0: none.
    """
    balance: Literal["fixed", "uncertainty"] = "fixed"
    """How the losses are weighed: `fixed` by the tasks' weights, `uncertainty` by these times what
    is learned of each task's noise (Kendall et al. 2018)."""
    softmax: Softmax = FullSoftmax()
    """What a retrieval target is told from: the whole catalogue, or sampled items, for catalogues
    whose logits do not fit into memory."""
    patience: int = Field(10, ge=1)
    """Stop after so many epochs without a better validation value."""
    refit: Literal["no", "validation"] = "no"
    """`validation`: once the best epoch is known, train anew for as many epochs on training and
    validation events, and ship that; only test is evaluated then, as baselines are."""
    monitor: str | None = None
    """Validation value that picks the best epoch, `task/metric`; default: the first task's."""
    num_workers: int = Field(1, ge=1)
    """Data-parallel workers."""
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    """`auto`: a GPU per worker if the cluster has enough."""
    max_failures: int = Field(2, ge=0)
    """So often a failed worker group is restarted from the last checkpoint."""


# ---- evaluation, scoring, serving, Ray ----------------------------------------------------------


Baseline = Literal[
    "random",
    "popularity",
    "recent_popularity",
    "bigram",
    "itemknn",
    "ease",
    "slim",
    "ials",
    "bpr",
    "text_nearest",
    "ials_text",
    "mean",
    "bias",
    "common_neighbours",
    "adamic_adar",
]
Candidates = Literal["all", "cold"]


class EvaluateConfig(_Section):
    baselines: list[Baseline] = [
        "random",
        "popularity",
        "recent_popularity",
        "bigram",
        "itemknn",
        "ease",
        "ials",
        "mean",
        "bias",
        "common_neighbours",
        "adamic_adar",
    ]
    """Baselines to fit and report beside the model."""
    k: int = Field(10, ge=1, le=100)
    """Length of the lists that ranking metrics look at."""
    candidates: Candidates = "all"
    """What lists are made from, in validation while fitting too: `all` items, or only `cold` ones,
    those without an event before the split that is judged."""
    bootstrap_samples: int = Field(1000, ge=100)
    """Resamples of users behind each interval."""
    max_dense_items: int = Field(50_000, ge=1)
    """Catalogues above this get no dense item-item baseline; the report says so."""
    explanations: int = Field(200, ge=0, le=10_000)
    """Users whose best item's explanation is put to the removal test; 0: none. Each costs as many
    encodings as there are items in the history, at most 100."""
    dial: list[Annotated[float, Field(ge=0.0, le=1.0)]] = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7]
    """Settings of `diversity` at which accuracy and diversity are measured; empty: none."""
    dial_users: int = Field(1000, ge=1)
    """Users who are asked at each setting of the dial, at most."""
    max_harm: float = Field(0.02, ge=0.0)
    """`mtrec evaluate --twins` fails where a task is significantly worse than trained alone, and by
    more than this share of its figure."""


FilterValue = StrictStr | StrictInt | StrictFloat
FilterRange = Annotated[dict[Literal["min", "max"], StrictInt | StrictFloat], Field(min_length=1)]


class ScoreConfig(_Section):
    k: int = Field(10, ge=1, le=1000)
    """Items per user in `predictions/`."""
    candidates: int = Field(200, ge=1, le=10_000)
    """Items from retrieval that the ranking network sees."""
    weights: dict[str, Annotated[float, Field(ge=0.0)]] = {}
    """Weights of the tasks in the blended score; default: retrieval 1, others 0."""
    diversity: float = Field(0.0, ge=0.0, le=1.0)
    """As in a request: 0 lists the best scores, 1 spreads the list as far as it goes."""
    filter: dict[str, FilterValue | list[FilterValue] | FilterRange] = {}
    """As in a request: item column -> a value, a list of values, or `{min, max}` of a number; only
    items that meet all conditions are listed."""
    explain: bool = False
    """Also write why each item is there: `content_share`, and of up to three items of the history
    `reasons`, `effects` and `similarities`. Costs an encoding for each item of a history, at most
    100 a user."""
    batch_size: int = Field(256, ge=1)
    """Users in one batch."""
    actors: int = Field(1, ge=1)
    """Scoring actors at most."""


class ServeConfig(_Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(2, ge=1)
    num_cpus: float = Field(1.0, gt=0.0)
    """CPUs that one replica reserves."""
    target_ongoing_requests: float = Field(8.0, gt=0.0)
    """Requests in flight per replica that autoscaling aims at."""
    max_ongoing_requests: int = Field(16, ge=1)
    """Requests that one replica takes at a time."""
    max_queued_requests: int = Field(200, ge=1)
    """Requests that wait at most; more are refused with 503."""
    request_timeout_s: float = Field(30.0, gt=0.0)
    """Requests that take longer are answered 408; in seconds."""
    upscale_delay_s: float = Field(10.0, ge=0.0)
    downscale_delay_s: float = Field(300.0, ge=0.0)
    max_body_bytes: int = Field(1 << 20, ge=1024)
    """Larger request bodies are refused with 413."""
    max_batch: int = Field(256, ge=1)
    """Requests in one `/v1/recommend/batch` at most."""
    max_history: int = Field(1000, ge=1)
    """Events in a request's history at most."""
    max_k: int = Field(1000, ge=1)
    """Items in one answer at most."""

    @model_validator(mode="after")
    def _check(self) -> "ServeConfig":
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}"
            )
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"target_ongoing_requests {self.target_ongoing_requests} is above "
                f"max_ongoing_requests {self.max_ongoing_requests}: it would never scale up"
            )
        return self


class RayConfig(_Section):
    num_cpus: int | None = Field(None, ge=1)
    """Logical CPUs of a local Ray; default: those of the machine, at least 4."""
    object_store_mb: int | None = Field(None, ge=80)
    """Shared memory of a local Ray in MiB; default: Ray's."""
    partitions: int | None = Field(None, ge=1)
    """Partitions of a group-by; default: from the size of the data and the CPUs."""


class Config(_Section):
    """One run."""

    run: RunConfig = RunConfig()
    data: DataConfig
    text: TextConfig = TextConfig()
    tasks: list[Task] = Field(min_length=1)
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    score: ScoreConfig = ScoreConfig()
    serve: ServeConfig = ServeConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        for problem in _problems(self):
            raise ValueError(problem)
        return self

    def task(self, name: str) -> Task:
        """Give the task of that name."""
        return next(task for task in self.tasks if task.name == name)


def _problems(config: Config) -> Iterator[str]:
    """Yield what single sections cannot see."""
    names = [task.name for task in config.tasks]
    if len(set(names)) < len(names):
        yield f"tasks: names must differ, found {names}"
    if [task.kind for task in config.tasks].count("retrieval") != 1:
        yield "tasks: expected exactly one task of kind retrieval (it makes the candidates)"
    yield from _check_social(config)
    taken = {"user_id", "rank", "item_id", "score"}
    if config.score.explain:
        taken |= {*EXPLANATION_COLUMNS}
    for name in sorted(taken & set(names)):
        yield f'tasks: "{name}" is a column of predictions/ already; name the task otherwise'
    yield from _check_column_names(config.data)
    columns = config.data.interactions.columns
    for task in label_tasks(config.tasks):
        yield from _check_label(f"tasks.{task.name}.label", task.label, columns)
    if config.model.factors is not None:
        yield from _check_factors(config.model.factors, columns)
    weighable = [task.name for task in config.tasks if task.kind != "social"]
    for name in config.score.weights:
        if name not in weighable:
            yield f'score.weights: no task is called "{name}"; there are {weighable}'
    yield from _check_filter(config)
    if config.text.behaviour is not None:
        for label in (config.text.behaviour.liked, config.text.behaviour.disliked):
            if label is not None:
                yield from _check_label("text.behaviour", label, columns)
        items = config.data.items.columns if config.data.items else {}
        if config.text.behaviour.item_column not in items:
            yield (
                f'text.behaviour.item_column "{config.text.behaviour.item_column}" is no column '
                f"of data.items; there are {sorted(items)}"
            )
    for key, template, table in (
        ("item_template", config.text.item_template, config.data.items),
        ("user_template", config.text.user_template, config.data.users),
    ):
        known = set(table.columns) if table else set()
        for name in template_fields(template or ""):
            if name not in known:
                yield f'text.{key} uses "{{{name}}}"; the table has {sorted(known)}'
    if config.data.split.method == "column" and config.data.interactions.split is None:
        yield "data.split.method is column: name the column in data.interactions.split"
    if config.data.split.method == "global_time" and config.data.interactions.timestamp is None:
        yield "data.split.method is global_time: name the column in data.interactions.timestamp"
    if config.train.monitor is not None:
        k = config.evaluate.k
        values = [
            f"{task.name}/{name}".format(k=k)
            for task in config.tasks
            for name in _MONITORED[task.kind]
        ]
        if config.train.monitor.format(k=k) not in values:
            yield (
                f'train.monitor "{config.train.monitor}" is no validation value of this run; '
                f"there are {values}"
            )
    if config.train.batch_size % config.train.num_workers:
        yield (
            f"train.batch_size {config.train.batch_size} must be a multiple of "
            f"train.num_workers {config.train.num_workers}"
        )


_MONITORED = {
    "retrieval": ("ndcg@{k}", "hr@{k}"),
    "regression": ("rmse",),
    "binary": ("auc", "logloss"),
    "social": ("ndcg@{k}", "recall@{k}"),
}
"""What validation measures while fitting (`model.validation`)."""

_TAKEN = {
    "interactions": {"user_id", "item_id", "timestamp", "split"},
    "items": {"item_id", "item_index", "train_count", "text"},
    "users": {"user_id", "text", "behaviour_text", "behaviour_cut"},
}
"""Columns that the tables of a dataset have anyway."""


def _check_social(config: Config) -> Iterator[str]:
    """Yield what is wrong between the table of links and the task that reads it."""
    count = [task.kind for task in config.tasks].count("social")
    if count > 1:
        yield f"tasks: expected at most one task of kind social, found {count}"
    if count and config.data.social is None:
        yield "tasks: a task of kind social needs the table of links: name it in data.social"
    if config.data.social is not None and not count:
        yield (
            "data.social is read by a task of kind social only: add "
            "{name: friends, kind: social} to tasks, or leave data.social out"
        )


def _check_factors(term: FactorsTerm, columns: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the column that is factorised."""
    numbers = sorted(
        name for name, value in columns.items() if value.kind == "number" and not value.context
    )
    if term.column not in numbers:
        yield (
            f'model.factors.column: "{term.column}" is no number column of '
            f"data.interactions.columns that users say of items; there are {numbers}"
        )


EXPLANATION_COLUMNS = ("content_share", "reasons", "effects", "similarities")
"""Columns of `predictions/` that `score.explain` adds."""


def _check_filter(config: Config) -> Iterator[str]:
    """Yield what is wrong with the conditions of batch scoring, as a request would be told."""
    columns = config.data.items.columns if config.data.items else {}
    for name, condition in config.score.filter.items():
        if name not in columns:
            yield f'score.filter: items have no column "{name}"; there are {sorted(columns)}'
            continue
        values = condition if isinstance(condition, list) else [condition]
        if columns[name].kind == "number":
            if any(isinstance(value, str) for value in values):
                yield f"score.filter.{name}: expected numbers or a range, found {condition!r}"
        elif any(not isinstance(value, str | int) for value in values):
            yield (
                f"score.filter.{name}: expected a value or a list of values, found {condition!r}; "
                "only numbers have a range"
            )


def _check_column_names(data: DataConfig) -> Iterator[str]:
    for table, taken in _TAKEN.items():
        section = getattr(data, table)
        for name in section.columns if section is not None else ():
            if name in taken:
                yield (
                    f"data.{table}.columns.{name}: mtrec uses this name itself; "
                    f'give the column another and name it in "source: {name}"'
                )


def _check_label(where: str, label: str, columns: dict[str, Any]) -> Iterator[str]:
    column = parse_label(label).column
    if column not in columns or columns[column].kind != "number":
        numbers = sorted(name for name, value in columns.items() if value.kind == "number")
        yield (
            f'{where}: "{column}" is no number column of data.interactions.columns; '
            f"there are {numbers}"
        )


# ---- label expressions and templates ------------------------------------------------------------


class LabelExpression(_Section):
    """A column, or a column compared with a number: `rating`, `rating >= 4`."""

    column: str
    operator: Literal[">=", ">", "<=", "<", "==", "!="] | None = None
    value: float = 0.0


_LABEL = re.compile(
    r"^\s*(?P<column>[a-z][a-z0-9_]*)\s*"
    r"(?:(?P<operator>>=|<=|==|!=|>|<)\s*(?P<value>[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?))?\s*$"
)


def parse_label(text: str) -> LabelExpression:
    """Parse a label expression.

    >>> parse_label("rating >= 4").value
    4.0

    Raises:
        ValueError: the text is neither a column nor `column OPERATOR number`.
    """
    match = _LABEL.match(text)
    if match is None:
        raise ValueError(
            f'"{text}" is no label: expected a column or a comparison such as "rating >= 4"'
        )
    return LabelExpression(
        column=match["column"],
        operator=match["operator"],
        value=float(match["value"] or 0.0),
    )


def template_fields(template: str) -> list[str]:
    """List the columns that a text template names.

    >>> template_fields("{title} ({year})")
    ['title', 'year']
    """
    return re.findall(r"{([^{}]*)}", template)
