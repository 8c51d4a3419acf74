"""The stages: which artifact comes from which, what is still valid, what must be done.

Each stage has a key, the hash of the configuration that it reads and of the ids of its parents. A
stage is done if its artifact is whole and carries that key. Every write makes a new id, so redoing
one stage redoes what depends on it, and nothing else.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from mtrec import artifacts, storage
from mtrec.artifacts import Manifest
from mtrec.config import Config
from mtrec.configfile import dump_config
from mtrec.errors import ArtifactError, MtrecError
from mtrec.modelconfig import label_tasks, social_task
from mtrec.paths import Paths
from mtrec.runlock import hold_folder
from mtrec.runlog import event
from mtrec.versions import find_bundle, remove_unfinished

logger = logging.getLogger("mtrec.stages")

STAGES = ("prepare", "embed", "train", "evaluate", "score")
"""All stages in order."""

SPEED = {
    "text": {"device", "actors", "batch_tokens", "store"},
    "train": {"num_workers", "use_gpu", "max_failures"},
    "evaluate": {"max_harm"},
    "score": {"batch_size", "actors"},
}
"""By section, the terms that stay out of a stage's key: they change how fast it runs, not what it
gives, but for the gate of the twins, which have a key of their own."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did: seconds of the stages done, names of those that were up to date."""

    paths: Paths
    done: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


class Chain:
    """One walk along the stages; keeps the ids that the next keys need."""

    def __init__(self, config: Config, address: str | None, shared: str | None = None) -> None:
        self.config = config
        self.address = address
        self.paths = Paths(config.run.workdir, shared)
        self.outcome = Outcome(self.paths)
        self.ids: dict[str, str] = {}
        self._is_connected = False

    def write_config(self) -> None:
        """Leave the resolved configuration beside the artifacts, unless it is there already."""
        path = storage.join(self.paths.workdir, "config.yaml")
        text = dump_config(self.config).encode()
        try:
            if not storage.exists(path) or storage.read_bytes(path) != text:
                storage.write_bytes(path, text)
        except OSError as error:
            workdir = self.paths.workdir
            raise storage.explain(error, "write config.yaml", workdir) or ArtifactError(
                f"cannot write to {workdir}: {error}\n"
                "set run.workdir to a folder that can be written to"
            ) from error

    def tidy(self) -> None:
        """Remove what killed runs left that belongs to no stage's artifact."""
        storage.remove_abandoned(self.paths.workdir)
        if storage.exists(self.paths.bundles):
            # Unless somebody changes a bundle at this moment.
            with suppress(ArtifactError), hold_folder(self.paths.bundles):
                remove_unfinished(self.paths.bundles)

    def walk(self, stage: str, wanted: bool = True) -> None:
        """Take a stage: do it, or see that it is done; one that is not wanted must be done."""
        getattr(self, f"_{stage}")(wanted)

    def _prepare(self, wanted: bool) -> None:
        from mtrec.data.pipeline import input_fingerprint, prepare

        config = self.config
        # What `prepare` makes labels of, and what it checks them by.
        labels = [task.model_dump(exclude={"weight"}) for task in label_tasks(config.tasks)]
        text = config.text
        key = storage.hash_values(
            "prepare",
            _dump(config.data),
            labels,
            [text.item_template, text.user_template, _dump(text.behaviour)],
            config.run.seed,
            input_fingerprint(config),
        )
        self._stage(
            "prepare",
            wanted,
            kind="dataset",
            path=self.paths.dataset,
            key=key,
            work=lambda: prepare(config, path=self.paths.dataset, key=key),
        )

    def _embed(self, wanted: bool) -> None:
        from mtrec.text.embed import embed, has_shards

        parents = {"dataset": self.ids["dataset"]}
        key = storage.hash_values("embed", self._section("text"), parents)
        self._stage(
            "embed",
            wanted,
            kind="embeddings",
            path=self.paths.embeddings,
            key=key,
            work=lambda: embed(
                self.config,
                dataset=self.paths.dataset,
                path=self.paths.embeddings,
                key=key,
                parents=parents,
            ),
            # The store may be another folder by now, or have lost a shard.
            is_whole=lambda made: has_shards(self.config.text, self.paths.embeddings, made),
        )

    def _train(self, wanted: bool) -> None:
        config = self.config
        parents = {name: self.ids[name] for name in ("dataset", "embeddings")}
        key = storage.hash_values(
            "train",
            [_dump(task) for task in config.tasks],
            self._section("model"),
            self._section("train"),
            [config.run.seed, config.evaluate.k, config.evaluate.candidates],
            parents,
        )
        checkpoints = config.run.storage or storage.join(self.paths.workdir, "checkpoints")

        def work() -> None:
            from mtrec.train import train

            before = artifacts.find_manifest(current())
            if before is not None and "bundle" in before.parents:
                logger.warning(
                    "%s was changed after training, by add-items or remove-users: the new version "
                    "comes from the dataset, which does not know of it; run these again",
                    current(),
                )
            train(
                config,
                dataset=self.paths.dataset,
                embeddings=self.paths.embeddings,
                checkpoints=checkpoints,
                bundles=self.paths.bundles,
                key=key,
                parents=parents,
            )

        def current() -> str:
            try:
                return find_bundle(self.paths.bundles)
            except ArtifactError:
                return storage.join(self.paths.bundles, "none")

        self._stage("train", wanted, kind="bundle", path=current, key=key, work=work)

    def _evaluate(self, wanted: bool) -> None:
        from mtrec.evaluate import evaluate

        if not wanted:
            return
        parents = {name: self.ids[name] for name in ("dataset", "bundle")}
        score = self.config.score
        key = storage.hash_values(
            "evaluate",
            self._section("evaluate"),
            [score.candidates, score.weights, self.config.run.seed],
            parents,
        )
        self._stage(
            "evaluate",
            wanted,
            kind="report",
            path=self.paths.report,
            key=key,
            work=lambda: evaluate(
                self.config,
                dataset=self.paths.dataset,
                bundle=find_bundle(self.paths.bundles),
                path=self.paths.report,
                key=key,
                parents=parents,
            ),
        )

    def _score(self, wanted: bool) -> None:
        from mtrec.score import score

        if not wanted:
            return
        parents = {name: self.ids[name] for name in ("dataset", "bundle")}
        key = storage.hash_values("score", self._section("score"), parents)
        self._stage(
            "score",
            wanted,
            kind="predictions",
            path=self.paths.predictions,
            key=key,
            work=lambda: score(
                self.config,
                dataset=self.paths.dataset,
                bundle=find_bundle(self.paths.bundles),
                path=self.paths.predictions,
                key=key,
                parents=parents,
            ),
        )
        if social_task(self.config.tasks) is not None:
            self._friends()

    def _friends(self) -> None:
        from mtrec.score_friends import score_friends

        parents = {"bundle": self.ids["bundle"]}
        key = storage.hash_values("friends", self.config.score.k, parents)
        self._stage(
            "friends",
            True,
            kind="friends",
            path=self.paths.friends,
            key=key,
            work=lambda: score_friends(
                self.config,
                bundle=find_bundle(self.paths.bundles),
                path=self.paths.friends,
                key=key,
                parents=parents,
            ),
        )

    def compare(self, twins: Mapping[str, "Chain"]) -> None:
        """Compare each task with its twin, unless that is done and valid."""
        from mtrec.twins import evaluate_twins

        parents = {name: self.ids[name] for name in ("dataset", "bundle")}
        parents |= {f"twin of {task}": twin.ids["bundle"] for task, twin in twins.items()}
        score = self.config.score
        key = storage.hash_values(
            "twins",
            self._section("evaluate"),
            self.config.evaluate.max_harm,
            [score.candidates, score.weights, self.config.run.seed],
            parents,
        )
        self._stage(
            "twins",
            True,
            kind="twins",
            path=self.paths.twins,
            key=key,
            work=lambda: evaluate_twins(
                self.config,
                dataset=self.paths.dataset,
                bundle=find_bundle(self.paths.bundles),
                twins={task: find_bundle(twin.paths.bundles) for task, twin in twins.items()},
                path=self.paths.twins,
                key=key,
                parents=parents,
            ),
        )

    def _stage(
        self,
        stage: str,
        wanted: bool,
        *,
        kind: str,
        path: str | Callable[[], str],
        key: str,
        work: Callable[[], object],
        is_whole: Callable[[Manifest], bool] = lambda _: True,
    ) -> None:
        """Do a stage unless its artifact is whole and has the key; remember the artifact's id."""

        def place() -> str:
            return path if isinstance(path, str) else path()

        if stage != "embed":
            # The embedding store keeps finished shards without a manifest on purpose.
            artifacts.remove_leftovers(place(), key=key)
        manifest = artifacts.find_manifest(place())
        if manifest is not None and manifest.key == key and is_whole(manifest):
            artifacts.verify(place(), manifest)
            if wanted:
                self.outcome.skipped.append(stage)
                event(logger, "stage.up_to_date", stage=stage)
        elif not wanted:
            state = "is missing" if manifest is None else "was made by another configuration"
            if manifest is not None and manifest.key == key:
                state = "lacks some of its files"
            elif manifest is not None and "bundle" in manifest.parents:
                state = "was changed after training, by add-items or remove-users"
            raise ArtifactError(
                f"the {kind} at {place()} {state}\n"
                f"run `mtrec {stage}` with this configuration first, or `mtrec run` for all stages"
            )
        else:
            self._connect()
            event(logger, "stage.start", stage=stage)
            begin = time.monotonic()
            work()
            self.outcome.done[stage] = time.monotonic() - begin
            event(logger, "stage.done", stage=stage, seconds=round(self.outcome.done[stage], 1))
            manifest = artifacts.read_manifest(place(), kind)
        self.ids[kind] = manifest.id

    def _connect(self) -> None:
        """Connect to Ray before the first work, and see that all nodes reach what it writes."""
        from mtrec.rayrun import check_shared, connect

        connect(self.config.ray, self.address)
        if not self._is_connected:
            run, text = self.config.run, self.config.text
            places = {"run.workdir": run.workdir, "run.storage": run.storage}
            check_shared({**places, "text.store": text.store})
            self._is_connected = True

    def _section(self, name: str) -> dict[str, Any]:
        """Give a section of the configuration without what only changes speed."""
        tree: dict[str, Any] = _dump(getattr(self.config, name))
        return {key: value for key, value in tree.items() if key not in SPEED.get(name, set())}


@contextmanager
def explained(stage: str, workdir: str) -> Iterator[None]:
    """Let errors of ours through, also those of other processes, and explain the storage's."""
    try:
        yield
    except MtrecError:
        raise
    except Exception as error:
        raise _explain(error, stage, workdir) from error


def _explain(error: Exception, stage: str, workdir: str) -> BaseException:
    """Give the error of ours behind what a stage raised, also in another process; else itself."""
    from mtrec.rayrun import find_cause

    cause = find_cause(error)
    if isinstance(cause, OSError):
        return storage.explain(cause, f"finish {stage}", workdir) or error
    return cause


def _dump(section: Any) -> Any:
    """Give what is set: a key that a later version can add, absent, changes no key of before."""
    return section.model_dump(mode="json", exclude_none=True) if section is not None else None
