"""Where the artifacts of a run lie below its workdir. Pure."""

from dataclasses import dataclass

from mtrec import storage


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a run's artifacts lie.

    Attributes:
        workdir: the run's own.
        shared: workdir of the run whose dataset and text vectors it reads; None: its own.
    """

    workdir: str
    shared: str | None = None

    @property
    def dataset(self) -> str:
        """The cleaned and split tables."""
        return storage.join(self.shared or self.workdir, "dataset")

    @property
    def embeddings(self) -> str:
        """The text vectors."""
        return storage.join(self.shared or self.workdir, "embeddings")

    @property
    def bundles(self) -> str:
        """The versions of the model to ship."""
        return storage.join(self.workdir, "bundles")

    @property
    def report(self) -> str:
        """The evaluation."""
        return storage.join(self.workdir, "report")

    @property
    def friends(self) -> str:
        """Everybody's list of friends, where there is a social task."""
        return storage.join(self.workdir, "friends")

    @property
    def predictions(self) -> str:
        """Everybody's list."""
        return storage.join(self.workdir, "predictions")

    @property
    def twins(self) -> str:
        """The comparison with single-task twins, whose own workdirs are beside it."""
        return storage.join(self.workdir, "twins", "report")
