"""What a page asks of a report: figures, intervals, the best baseline, which way is better."""

from mtrec.comparison import MODEL
from mtrec.pageparts import Json

LISTS = ("retrieval", "social")
"""Kinds of task that are measured by lists."""


class ReportView:
    """Read the tree of `report.json`.

    Attributes:
        report: the tree.
        protocol: its protocol.
        tasks: name -> kind.
        k: length of the lists.
        lower: metrics of which less is better.
    """

    def __init__(self, report: Json) -> None:
        self.report = report
        self.protocol: Json = report["protocol"]
        self.tasks: dict[str, str] = self.protocol["tasks"]
        self.k: int = self.protocol["k"]
        self.lower = set(self.protocol["lower_is_better"])

    def methods(self, task: str) -> list[str]:
        """List the model and the baselines that have figures of a task."""
        return [MODEL, *(n for n in self.report["baselines"] if self.values(n, task))]

    def values(self, method: str, task: str) -> dict[str, float]:
        """Give a method's figures of a task: metric -> value."""
        tree = self.report["model"] if method == MODEL else self.report["baselines"][method]
        found: dict[str, float] = tree.get(task, {})
        return found

    def interval(self, method: str, task: str, metric: str) -> tuple[float | None, float | None]:
        """Give the ends of a figure's interval; None where there is none."""
        found = self.report["intervals"].get(method, {}).get(task, {}).get(metric)
        return (found[0], found[1]) if found else (None, None)

    def main_metrics(self, kind: str) -> list[str]:
        """Name the metrics that a kind of task is shown by, the first of them first."""
        if kind in LISTS:
            return [f"ndcg@{self.k}", f"hr@{self.k}"]
        return ["auc"] if kind == "binary" else ["rmse"]

    def best_baseline(self, task: str, metric: str) -> str | None:
        """Name the baseline with the best figure; None: there is none."""
        values: dict[str, float] = {
            name: self.values(name, task)[metric]
            for name in self.report["baselines"]
            if metric in self.values(name, task)
        }
        if not values:
            return None
        sign = 1.0 if metric in self.lower else -1.0
        return min(values, key=lambda name: sign * values[name])

    def shown_in_slices(self, task: str) -> list[str]:
        """Name the methods that slices show."""
        metric = self.main_metrics(self.tasks[task])[0]
        best = self.best_baseline(task, metric)
        others = [name for name in (best, "popularity") if name in self.methods(task)]
        return list(dict.fromkeys([MODEL, *(name for name in others if name is not None)]))

    def direction(self, metric: str) -> str:
        """Say which way is better."""
        return "lower is better" if metric in self.lower else "higher is better"

    def task_order(self, name: str) -> int:
        """Give the place of a loss's task, those of no task last."""
        order = list(self.tasks)
        task = name.removeprefix("loss/")
        return order.index(task) if task in order else len(order)
