"""What is added to the network's answers, and how much of it: validation chooses, after the fit.

Recent popularity, an item-item or a next-item term and iALS join the logits of lists, a
factorisation the predictions of labels.
The figures are those of `validation.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mtrec import metrics
from mtrec.config import Config
from mtrec.data.histories import Histories
from mtrec.factors import Factors, FactorTerm, fit_join
from mtrec.ials import ImplicitFactors, fit_ials
from mtrec.itemitem import Amount, ItemItem, NextItemSums, fit_ease
from mtrec.model.batches import TrainingData
from mtrec.model.network import MultiTaskModel
from mtrec.model.validation import BLOCK, listed_hits, open_logits, validate_block
from mtrec.modelconfig import ItemItemTerm, NextItemTerm, RegressionTask, label_tasks
from mtrec.popular import decayed_counts

# What an item-item term is multiplied by once iALS is beside it.
_BESIDE = (0.25, 0.5, 0.75, 1.5)


class RecentPopularity:
    """log(1 + c), c an item's events with weight 2^(-age / half-life); the same for all users.

    Attributes:
        values: (N,) float32.
    """

    def __init__(self, histories: Histories, num_items: int, half_life: float) -> None:
        counts = decayed_counts(histories, num_items, half_life)
        self.values: NDArray[np.float32] = np.log1p(counts).astype(np.float32)

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Give what it adds to the logits of B users: (B, N)."""
        return np.tile(self.values, (len(histories), 1))


Term = ItemItem | ImplicitFactors | RecentPopularity
Key = TypeVar("Key")


def choose_recency(
    model: MultiTaskModel, config: Config, data: TrainingData, held_out: Histories
) -> dict[str, float]:
    """Choose by NDCG on validation what recent popularity adds to the model's logits.

    Args:
        model: with the weights that ship.
        config: `model.recency` holds what is tried.
        data: gives the histories (training events) and the inputs.
        held_out: the same users with the events to predict.

    Returns:
        `half_life`, `scale` (0: leaving it out is best), `ndcg` with it and `ndcg_without`.
    """
    term = config.model.recency
    assert term is not None, "a configuration with recent popularity"
    size = data.sizes.num_items
    fitted = {share: RecentPopularity(data.train, size, share) for share in term.half_lives}
    share, chosen = _best_of(model, config, data, held_out, fitted, term.scales)
    return {"half_life": share, **chosen}


def fit_items(
    term: ItemItemTerm | NextItemTerm, histories: Histories, num_items: int
) -> Iterator[tuple[dict[str, float], ItemItem]]:
    """Fit a term of pairs of items with each of its settings; yield settings and what was fitted.

    Settings are `reg` and, of a next-item term, `half_life`.
    """
    if isinstance(term, NextItemTerm):
        for half_life in term.half_lives:
            sums = NextItemSums.of(histories, num_items, half_life)
            for reg in term.reg:
                yield {"half_life": half_life, "reg": reg}, sums.fit(reg, term.top)
        return
    amount = Amount.of(histories, term.amount) if term.amount is not None else None
    for reg in term.reg:
        fitted = fit_ease(histories, num_items, reg=reg, top=term.top, amount=amount)
        yield {"reg": reg}, fitted


def choose_items(
    model: MultiTaskModel,
    config: Config,
    term: ItemItemTerm | NextItemTerm,
    data: TrainingData,
    held_out: Histories,
) -> tuple[ItemItem | None, dict[str, float]]:
    """Choose by NDCG on validation what a term of pairs of items adds to the model's logits.

    Args:
        model: with the weights that ship.
        config: the run.
        term: what is tried.
        data: gives the histories (training events) and the inputs.
        held_out: the same users with the events to predict.

    Returns:
        The term, scaled to logits, None where leaving it out is best; and what was chosen: the
        settings of `fit_items`, `scale`, `ndcg` with it and `ndcg_without`.
    """
    settings, fitted = zip(*fit_items(term, data.train, data.sizes.num_items), strict=True)
    best, chosen = _best_of(model, config, data, held_out, dict(enumerate(fitted)), term.scales)
    scale = chosen["scale"]
    return (fitted[best].scaled(scale) if scale else None), {**settings[best], **chosen}


def choose_ials(
    model: MultiTaskModel,
    config: Config,
    data: TrainingData,
    held_out: Histories,
    item_item: ItemItem | None,
) -> tuple[ImplicitFactors | None, ItemItem | None, dict[str, float]]:
    """Choose by NDCG on validation what iALS adds to the logits of model and item-item term.

    The two terms know much of the same, so the item-item term's scale is chosen anew beside it.

    Args:
        model: with the weights that ship.
        config: `model.ials` holds what is tried.
        data: gives the histories (training events) and the inputs.
        held_out: the same users with the events to predict.
        item_item: what was chosen before.

    Returns:
        iALS scaled to logits, None where leaving it out is best; the item-item term; and what was
        chosen: `factors`, `alpha`, `reg`, `ridge` (0: texts tell nothing), `scale`, `item_item`
        (times its scale before), `ndcg` with it and `ndcg_without`.
    """
    term = config.model.ials
    assert term is not None, "a configuration with iALS"
    text = data.items.text.cpu().numpy()
    terms: dict[Any, Term] = {}
    for at, settings in enumerate(term.tried):
        fitted = fit_ials(
            data.train, data.sizes.num_items, seed=config.run.seed, **settings.model_dump()
        )
        terms[at, 0.0] = fitted
        for ridge in term.ridges if text.any() else ():
            told = fitted.with_texts(text, ridge)
            if told.told is not None and told.told.any():
                terms[at, ridge] = told
    kinds = list(terms)
    before: dict[Any, float] = {}
    if item_item is not None:
        terms["item_item"], before = item_item, {"item_item": 1.0}
    options = [(kinds[0], 0.0), *((kind, scale) for kind in kinds for scale in term.scales)]
    means = _ndcg_with(
        model, config, data, held_out, terms, [{**before, kind: scale} for kind, scale in options]
    )
    best = max(range(len(options)), key=means.__getitem__)
    (kind, scale), ndcg, factor = options[best], means[best], 1.0
    if scale and item_item is not None:
        beside = [{"item_item": factor, kind: scale} for factor in _BESIDE]
        again = _ndcg_with(model, config, data, held_out, terms, beside)
        factor, ndcg = max(
            [(1.0, ndcg), *zip(_BESIDE, again, strict=True)], key=lambda pair: pair[1]
        )
        item_item = item_item.scaled(factor)
    at, ridge = kind
    chosen = {
        **term.tried[at].model_dump(),
        "ridge": ridge,
        "scale": scale,
        "item_item": factor,
        "ndcg": ndcg,
        "ndcg_without": means[0],
    }
    found = terms[kind]
    assert isinstance(found, ImplicitFactors), "what was fitted above"
    return (found.scaled(scale) if scale else None), item_item, chosen


def _best_of(
    model: MultiTaskModel,
    config: Config,
    data: TrainingData,
    held_out: Histories,
    fitted: Mapping[Key, Term],
    scales: Sequence[float],
) -> tuple[Key, dict[str, float]]:
    """Give the setting of the best term, and its `scale`, `ndcg` and `ndcg_without`; 0: no term."""
    options = [(next(iter(fitted)), 0.0), *((name, scale) for name in fitted for scale in scales)]
    tried = [{name: scale} for name, scale in options]
    means = _ndcg_with(model, config, data, held_out, fitted, tried)
    best = max(range(len(options)), key=means.__getitem__)
    name, scale = options[best]
    return name, {"scale": scale, "ndcg": means[best], "ndcg_without": means[0]}


@torch.no_grad()
def _ndcg_with(
    model: MultiTaskModel,
    config: Config,
    data: TrainingData,
    held_out: Histories,
    terms: Mapping[Any, Term],
    options: Sequence[Mapping[Any, float]],
) -> list[float]:
    """Give NDCG on validation of the model's logits plus, for each option, its terms times factors.

    0 for all where nothing is held out.
    """
    model.eval()
    vectors = model.encode_items(data.items, data.trained)
    users = np.flatnonzero(np.diff(held_out.offsets) > 0)
    values: list[list[NDArray[np.float64]]] = [[] for _ in options]
    for begin in range(0, len(users), BLOCK):
        block = users[begin : begin + BLOCK]
        history, wanted = data.train.rows(block), held_out.rows(block)
        _, logits = open_logits(model, config, data, history, block, vectors)
        seen = history.latest(config.model.kept_events)
        added = {}
        for name, term in terms.items():
            scores = term.scores(seen)
            dense = scores if isinstance(scores, np.ndarray) else scores.toarray()
            added[name] = torch.from_numpy(dense).to(logits.device)
        for at, option in enumerate(options):
            total = logits + sum(factor * added[name] for name, factor in option.items())
            hits, count = listed_hits(config, data, total, history, wanted)
            values[at].append(metrics.ndcg(hits, count))
    return [float(np.nanmean(np.concatenate(parts))) if parts else 0.0 for parts in values]


@torch.no_grad()
def join_factors(
    model: MultiTaskModel,
    config: Config,
    data: TrainingData,
    held_out: Histories,
    factors: Factors,
) -> tuple[FactorTerm, dict[str, float]]:
    """Choose by the labels of validation how a factorisation joins the model's predictions.

    Args:
        model: with the weights that ship.
        config: `model.factors` names the column.
        data: gives the histories (training events), which the factorisation was fitted on.
        held_out: the same users with the events to predict.
        factors: fitted on `data.train`.

    Returns:
        The term; and for each task its RMSE or log loss on validation without it and with it.
    """
    assert config.model.factors is not None, "a configuration with factors"
    model.eval()
    vectors = model.encode_items(data.items, data.trained)
    bare = FactorTerm(factors, config.model.factors.column, config.model.factors.length, {})
    parts: list[dict[str, NDArray[Any]]] = []
    users = np.flatnonzero(np.diff(held_out.offsets) > 0)
    for begin in range(0, len(users), BLOCK):
        block = users[begin : begin + BLOCK]
        wanted = held_out.rows(block)
        said = bare.said(data.train.rows(block), wanted.event_user, wanted.item_index)
        values = validate_block(model, config, data, held_out, vectors, block)
        parts.append({**values, "said": said})
    weights, figures = {}, {}
    for task in label_tasks(config.tasks) if parts else ():
        label, network = (
            np.concatenate([part[f"{task.name}/{name}"] for part in parts])
            for name in ("label", "prediction")
        )
        said = np.concatenate([part["said"] for part in parts])
        known = np.isfinite(label)
        label, network, said = label[known], network[known], said[known]
        found = fit_join(task, network, said, label, factors.scale)
        if found is None:
            continue
        weights[task.name] = found
        measure = metrics.rmse if isinstance(task, RegressionTask) else metrics.logloss
        joined = replace(bare, weights=weights).join(task, network, said)
        for name, values_P in (("without", network), ("with", joined)):
            value = measure(label.astype(np.float64), values_P.astype(np.float64))
            figures[f"{task.name}_{name}"] = float(value)
    return replace(bare, weights=weights), figures
