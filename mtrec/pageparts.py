"""What pages are made of: the frame with its style sheet, cards, words and numbers."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from mtrec.comparison import MODEL

Json = Mapping[str, Any]

_TEMPLATE = Path(__file__).with_name("report.html.template")
NAMES = {
    "ndcg": "NDCG",
    "hr": "Hit rate",
    "mrr": "MRR",
    "map": "MAP",
    "f1": "F1",
    "rmse": "RMSE",
    "mae": "MAE",
    "mse": "MSE",
    "auc": "AUC",
    "logloss": "Log loss",
    "ece": "Calibration error",
}
_BASELINES = {
    "itemknn": "ItemKNN",
    "ease": "EASE",
    "ials": "iALS",
    "bpr": "BPR",
    "text_nearest": "nearest by text",
    "ials_text": "iALS, items by text",
    "slim": "SLIM",
    "adamic_adar": "Adamic-Adar",
    "mean": "mean",
    "bias": "bias",
    "svdpp": "SVD++",
    MODEL: "mtrec",
}


def whole_page(title: str, sections: Sequence[str]) -> str:
    """Give a whole page of sections; empty ones are left out."""
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), body="\n".join(part for part in sections if part)
    )


def metric_name(name: str) -> str:
    """Give a metric's name as people write it."""
    base, at, k = name.partition("@")
    return NAMES.get(base, base.capitalize()) + at + k


def method_name(name: str) -> str:
    """Give a method's name as people write it."""
    return _BASELINES.get(name, name.replace("_", " "))


def four_digits(value: float | None) -> str:
    """Give four digits or so; a dash for none."""
    if value is None:
        return "-"
    return (
        f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    )


def three_digits(value: float) -> str:
    """Give three digits."""
    return f"{value:.3g}"


def whole_percent(value: float) -> str:
    """Give whole per cent."""
    return f"{100 * value:.0f} %"


def signed_percent(value: float) -> str:
    """Give per cent with a sign."""
    if value == 0:
        return "0 %"
    return f"{100 * value:+.1f} %" if abs(value) < 0.1 else f"{100 * value:+.0f} %"


def card(title: str, subtitle: str, inner: str) -> str:
    """Give a card with a heading and what is drawn."""
    return (
        f'<div class="card"><h3>{escape(title)} <small>{escape(subtitle)}</small></h3>{inner}</div>'
    )


def legend_of(entries: Sequence[tuple[str, str]]) -> str:
    """Give a legend of (series, name)."""
    shown = "".join(f'<li><i class="{series}"></i>{escape(name)}</li>' for series, name in entries)
    return f'<ul class="legend">{shown}</ul>'
