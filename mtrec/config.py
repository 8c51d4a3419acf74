"""The whole run as one frozen tree of pydantic models: the only schema, the only defaults.

Every field is bounded and says its unit and effect; impossible combinations cannot be written down
or are refused here with the reason. Nothing below this layer has hidden defaults. `configfile.py`
reads and writes it.
"""

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import (
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    WrapValidator,
    model_validator,
)

from mtrec.configchecks import problems
from mtrec.dataconfig import DataConfig, Fraction, Section
from mtrec.labels import parse_label
from mtrec.modelconfig import ModelConfig, Task, by_kind


class RunConfig(Section):
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


# ---- text ---------------------------------------------------------------------------------------


class BehaviourText(Section):
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


class TextConfig(Section):
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


class FullSoftmax(Section):
    kind: Literal["full"] = "full"


class SampledSoftmax(Section):
    kind: Literal["sampled"]
    num_negatives: int = Field(1000, ge=1)
    """Items drawn in each step, for all its targets together."""
    distribution: Literal["uniform", "popularity"] = "uniform"
    """`uniform`: each item alike; `popularity`: by its training events, which needs fewer draws
    where few items are most of what is met. Either is corrected for (logQ)."""


Softmax = Annotated[
    Annotated[FullSoftmax, Tag("full")] | Annotated[SampledSoftmax, Tag("sampled")],
    by_kind("full", "sampled"),
]


class TrainConfig(Section):
    epochs: int = Field(60, ge=1)
    """Passes over the training windows at most."""
    batch_size: int = Field(32, ge=1)
    """Windows in one global batch; workers share it evenly, so it must be a multiple of them."""
    learning_rate: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.01, ge=0.0)
    """Of layers; not applied to embeddings, biases and norms."""
    ranking_decay: float = Field(1.0, ge=0.0)
    """Weight decay of the ranking network's item tables, as regularisation is in SVD++. Ratings and
    likes are learned by heart long before the best lists are found; this keeps them from it."""
    warmup_steps: int = Field(100, ge=0)
    """Steps in which the learning rate grows to its value; a tenth of all steps at most."""
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
    whose logits do not fit into memory; then a step also encodes only the items that it reads."""
    patience: int = Field(10, ge=1)
    """Stop after so many epochs without a better validation value."""
    refit: Literal["no", "validation"] = "no"
    """`validation`: once the best epoch is known, train anew for as many epochs on training and
    validation events, and ship that; only test is evaluated then, as baselines are."""
    monitor: str | None = None
    """Validation value that picks the best epoch, `task/metric`; default: the first task's."""
    num_workers: int = Field(1, ge=0)
    """Data-parallel workers. 0: the driver trains by itself, which starts ten seconds sooner, for
    small data; it keeps no checkpoints, so a run that is killed in training begins that anew."""
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
    "slit",
    "itemknn",
    "ease",
    "slim",
    "ials",
    "bpr",
    "text_nearest",
    "ials_text",
    "mean",
    "bias",
    "svdpp",
    "common_neighbours",
    "adamic_adar",
]
Candidates = Literal["all", "cold"]


class EvaluateConfig(Section):
    baselines: list[Baseline] = Field(
        [
            "random",
            "popularity",
            "recent_popularity",
            "bigram",
            "slit",
            "itemknn",
            "ease",
            "ials",
            "mean",
            "bias",
            "common_neighbours",
            "adamic_adar",
        ]
    )
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
    dial: list[Annotated[float, Field(ge=0.0, le=1.0)]] = Field([0.0, 0.1, 0.2, 0.3, 0.5, 0.7])
    """Settings of `diversity` at which accuracy and diversity are measured; empty: none."""
    dial_users: int = Field(1000, ge=1)
    """Users who are asked at each setting of the dial, at most."""
    max_harm: float = Field(0.02, ge=0.0)
    """`mtrec evaluate --twins` fails where a task is significantly worse than trained alone, and by
    more than this share of its figure."""


FilterValue = StrictStr | StrictInt | StrictFloat
FilterRange = Annotated[dict[Literal["min", "max"], StrictInt | StrictFloat], Field(min_length=1)]


def _in_one_line(value: object, check: Callable[[object], object]) -> object:
    """Say once what a condition may be, not once for each kind of it."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError(
            f"expected a value, a list of values, or min and max of a number, found {value!r:.60}"
        ) from None


Condition = Annotated[FilterValue | list[FilterValue] | FilterRange, WrapValidator(_in_one_line)]


class ScoreConfig(Section):
    k: int = Field(10, ge=1, le=1000)
    """Items per user in `predictions/`."""
    candidates: int = Field(200, ge=1, le=10_000)
    """Items from retrieval that the ranking network sees."""
    weights: dict[str, Annotated[float, Field(ge=0.0)]] = Field({})
    """Weights of the tasks in the blended score; default: retrieval 1, others 0."""
    diversity: float = Field(0.0, ge=0.0, le=1.0)
    """As in a request: 0 lists the best scores, 1 spreads the list as far as it goes."""
    filter: dict[str, Condition] = Field({})
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


class ServeConfig(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    ingress: Literal["python", "haproxy"] | None = None
    """What takes requests in; `haproxy` is faster, on Linux, and opens side ports. Default: what
    Ray's two environment variables say, without them `python`."""
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(2, ge=1)
    num_cpus: float = Field(1.0, gt=0.0)
    """CPUs that one replica reserves."""
    target_ongoing_requests: float = Field(8.0, gt=0.0)
    """Requests in flight per replica that autoscaling aims at."""
    max_ongoing_requests: int = Field(16, ge=1)
    """Requests that one replica takes at a time; what is refused beyond costs little. `mtrec serve`
    lets as many into Ray Serve's Python proxy as `max_replicas` can take."""
    max_queued_requests: int = Field(32, ge=1)
    """Requests that wait at most; more are refused with 503. Behind HAProxy each replica has a
    queue, for bursts: after a refusal it has none until 250 ms have gone by without another. A
    longer queue answers no more requests, only later."""
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
    follow_s: float = Field(10.0, ge=0.0)
    """How often a replica looks whether the bundle's pointer names another version, in seconds; 0:
    never."""
    log_format: Literal["text", "json"] = "text"
    """Of the log lines of replicas; `json` is one object a line."""
    access_log: bool = False
    """One log line a request, with its id."""

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


class RayConfig(Section):
    num_cpus: int | None = Field(None, ge=1)
    """Logical CPUs of a local Ray; default: those of the machine, at least 4."""
    object_store_mb: int | None = Field(None, ge=80)
    """Shared memory of a local Ray in MiB; default: Ray's."""
    partitions: int | None = Field(None, ge=1)
    """Partitions of a group-by; default: from the size of the data."""


class Serving(Section):
    """What serving a bundle needs of a run's configuration."""

    serve: ServeConfig = ServeConfig()
    ray: RayConfig = RayConfig()


class Config(Section):
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
        for problem in problems(self):
            raise ValueError(problem)
        return self

    def task(self, name: str) -> Task:
        """Give the task of that name."""
        return next(task for task in self.tasks if task.name == name)
