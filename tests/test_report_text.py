"""A report in a few lines: the model first, what it gained, nothing without figures."""

from typing import Any

from test_report import K
from test_report import _histories as histories_of
from test_report import _report as report_of

from mtrec.report_text import summary_table


def test_the_short_table_shows_the_model_first_and_what_it_gained() -> None:
    lines = summary_table(report_of(histories_of())).splitlines()
    assert lines[0].split()[:3] == ["click", "ndcg@3", "hr@3"]
    assert lines[1].split()[:3] == ["mtrec", "0.9385", "1.0000"]
    assert lines[2].split()[:3] == ["popularity", "0.0000", "0.0000"]
    assert "  rmse against the best baseline, bias: -50.0 % [-50.0, -50.0]" in lines
    assert lines[-1].startswith("note: ")


# ---- samples ------------------------------------------------------------------------------------


def samples() -> dict[str, Any]:
    """Give a removal test and a dial as a report has them."""
    return {
        "explanations": {
            "users": 10,
            "without_reason": 2,
            "holds": {"count": 7, "of": 8, "share": 0.875, "interval": [0.529, 0.978]},
            "every": {"count": 6, "of": 8, "share": 0.75, "interval": [0.409, 0.928]},
            "falls": {"count": 4, "of": 8, "share": 0.5, "interval": [0.215, 0.785]},
            "control": {"count": 0, "of": 0},
        },
        "dial": {
            "split": "test",
            "k": K,
            "users": 6,
            "of": 60,
            "points": [
                {
                    "dial": dial,
                    "ndcg@3": ndcg,
                    "ndcg@3_interval": [ndcg - 0.1, ndcg + 0.1],
                    "diversity@3": 1 - ndcg,
                    "diversity@3_interval": [0.0, 1.0],
                }
                for dial, ndcg in ((0.0, 0.4321), (0.5, 0.3211))
            ],
        },
    }


def test_the_short_table_leaves_out_what_says_nothing() -> None:
    report = {**report_of(histories_of()), **samples()}
    report["explanations"] |= {"users": 1, "without_reason": 1}
    for name in ("holds", "every", "falls", "control"):
        report["explanations"][name] = {"count": 0, "of": 0}
    for point in report["dial"]["points"]:
        del point["diversity@3"]
    lines = summary_table(report).splitlines()

    assert "removal test: of 1 user nobody has a reason to take away" in lines
    assert not any("asked again" in line or "dial" in line for line in lines)


def test_the_short_table_tells_of_explanations_and_of_the_dial() -> None:
    lines = summary_table({**report_of(histories_of()), **samples()}).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("removal test"))
    assert "10 users, 2 of whom have no reason" in lines[at]
    assert lines[at + 1].split() == [
        "lower",
        "without",
        "the",
        "first",
        "reason",
        "87.5",
        "%",
        "[52.9,",
        "97.8]",
    ]
    assert not any("another item" in line for line in lines)  # nobody was counted
    at = next(n for n, line in enumerate(lines) if line.startswith("diversity dial, 6 of 60 users"))
    assert lines[at].split()[-2:] == ["ndcg@3", "diversity@3"]
    assert lines[at + 2].split() == ["0.5", "0.3211", "0.6789"]
