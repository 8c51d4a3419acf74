"""Reports by hand, with one task and one metric, that tests of the quality job share."""

from typing import Any

Tree = dict[str, Any]


def report(
    model: float,
    baselines: dict[str, tuple[float, float]],
    *,
    metric: str = "ndcg@10",
    tuned_by: str = "ndcg@10",
    half: float = 0.02,
) -> Tree:
    """Give a report by hand; `baselines` are name -> (test, validation), intervals ± `half`."""
    return {
        "model": {"t": {metric: model}},
        "baselines": {name: {"t": {metric: test}} for name, (test, _) in baselines.items()},
        "tuned": {
            name: {"t": {"settings": {}, "tried": 1, f"validation_{tuned_by}": validation}}
            for name, (_, validation) in baselines.items()
        },
        "differences": {
            name: {
                "t": {
                    metric: {
                        "difference": model - test,
                        "interval": [model - test - half, model - test + half],
                        "relative": model / test - 1,
                        "relative_interval": [model / test - 1 - half, model / test - 1 + half],
                    }
                }
            }
            for name, (test, _) in baselines.items()
        },
    }
