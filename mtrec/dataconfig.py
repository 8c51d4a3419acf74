"""The sections of a configuration that say where the data is and how it is read, kept and split.

Part of the one schema, see `config.py`.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Outliers(Section):
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


class NumberColumn(Section):
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


class CategoryColumn(Section):
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


class CategoriesColumn(Section):
    kind: Literal["categories"]
    source: str | None = None
    """Name of the column in the file; by default the same name."""
    separator: str = Field("|", min_length=1)
    """What stands between the values of one cell; a list in Parquet or JSONL needs none."""
    min_count: int = Field(1, ge=1)
    """Categories seen fewer times in training count as unknown."""


class TextColumn(Section):
    kind: Literal["text"]
    source: str | None = None
    """Name of the column in the file; by default the same name."""
    missing: Literal["empty", "reject"] = "empty"
    """What an empty cell becomes: the empty text, or a set-aside row."""


class TimeColumn(Section):
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


class _Table(Section):
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


class QualityConfig(Section):
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


class LeaveLastOutSplit(Section):
    method: Literal["leave_last_out"]
    """Per user: the last event is test, the last but one validation, the rest train; ties in time
    are put in an order that the seed decides. Users with fewer than 3 events are all train."""


class RandomSplit(Section):
    method: Literal["random"]
    """Each event is drawn by a hash of the seed, its user, item and time."""
    validation: Fraction = 0.1
    """Share of events for validation."""
    test: Fraction = 0.1
    """Share of events for test."""

    @model_validator(mode="after")
    def _check(self) -> "RandomSplit":
        if self.validation + self.test >= 1.0:
            raise ValueError("validation + test must leave a share for training (below 1)")
        return self


class GlobalTimeSplit(Section):
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
    is evaluated; `max_rejected_fraction` does not count them."""

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
        lasts = fixed[1] - fixed[0] if fixed is not None else 0.0
        if 0.0 < lasts <= self.gap_s:
            raise ValueError(
                f"gap_s {self.gap_s:g} leaves nothing of validation, which lasts {lasts:g} s"
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


class KFoldSplit(Section):
    method: Literal["k_fold"]
    """Cross-validation: events are drawn into folds by a hash of the seed, user, item and time;
    each fold is the test split of a run of its own, and the report gives means and deviations."""
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


class ColumnSplit(Section):
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


class DataConfig(Section):
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
