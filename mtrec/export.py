"""From a fitted network to a bundle: what is fitted beside it, and everything that answering needs.

Item-item weights, iALS and matrix factorisation are fitted on the events that the network was
fitted on; how they join it is chosen by validation. No Ray.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mtrec import storage
from mtrec.bundle import EncoderInfo, ItemArrays, save_bundle
from mtrec.catalogue import NUM_SPECIAL
from mtrec.config import Config
from mtrec.data.dataset import read_table
from mtrec.data.features import FeatureTransform
from mtrec.data.histories import SPLITS, Histories
from mtrec.factors import Factors, FactorTerm, fit_factors
from mtrec.ials import ImplicitFactors, fit_ials
from mtrec.itemitem import ItemItem
from mtrec.model.batches import TrainingData
from mtrec.model.loading import load_training_data, open_store, text_rows
from mtrec.model.network import MultiTaskModel, build_model
from mtrec.model.terms import (
    RecentPopularity,
    choose_ials,
    choose_items,
    choose_recency,
    fit_items,
    join_factors,
)
from mtrec.model.towers import ItemVectors
from mtrec.model.validation import social_vectors
from mtrec.modelconfig import ItemItemTerm, NextItemTerm
from mtrec.runlog import event
from mtrec.userstore import SocialRows

# To the user this is the end of training.
logger = logging.getLogger("mtrec.train")
# The weight that is each item's bias in the logits of lists.
_BIAS = "items.bias.weight"
# Seconds between two lines about a factorisation that takes long.
_SAY_S = 10.0


def export_bundle(
    config: Config,
    state: dict[str, Any],
    *,
    fitted_on: list[str],
    dataset: str,
    embeddings: str,
    bundles: str,
    key: str,
    parents: Mapping[str, str],
) -> str:
    """Make a bundle of a fitted network, and give its version.

    Args:
        config: the run.
        state: what training saved: `export`, the weights to ship; `epoch` and `history`; after a
            refit `validated`, the weights that validation judged.
        fitted_on: splits that the network was fitted on.
        dataset: folder or URI of the dataset artifact.
        embeddings: folder or URI of the embeddings artifact.
        bundles: folder or URI that receives the bundle.
        key: hash of the work.
        parents: ids of the artifacts that it is made from.
    """
    data, _ = load_training_data(
        config, dataset=dataset, embeddings=embeddings, fitted_on=fitted_on
    )
    half_life = item_item = ials = factors = None
    parts = config.model
    if any((parts.recency, parts.item_item, parts.next_item, parts.ials, parts.factors)):
        known, held_out = load_training_data(config, dataset=dataset, embeddings=embeddings)
        if parts.recency is not None:
            state, half_life = _with_recency(config, state, data, known, held_out)
        judged = _network(config, known, state.get("validated", state["export"]))
        item_item, ials = _retrieval_terms(config, judged, data, known, held_out)
        if parts.factors is not None:
            factors = _factors(config, judged, data, known, held_out)
    model = _network(config, data, state["export"])
    with torch.no_grad():
        vectors = model.encode_items(data.items, data.trained)
    store = open_store(config, embeddings)
    users = read_table(storage.join(dataset, "users.parquet"))
    history = state["history"]
    chosen: dict[str, Any] = next(
        (entry for entry in history if entry["epoch"] == state["epoch"]), {}
    )
    return save_bundle(
        bundles,
        config=config,
        model=model,
        sizes=data.sizes,
        transform=FeatureTransform.from_json(
            storage.read_json(storage.join(dataset, "transform.json"))
        ),
        dataset=dataset,
        vectors=ItemArrays(
            content=vectors.content.numpy(),
            collaborative=vectors.collaborative.numpy(),
            bias=vectors.bias.numpy(),
            text=data.items.text.numpy() if data.sizes.items.text_width else None,
        ),
        item_item=item_item,
        ials=ials,
        factors=factors,
        user_text=(
            text_rows(store, users.column("text"), shift=0)
            if store is not None and data.sizes.users.text_width
            else None
        ),
        social=_social_rows(config, model, data, vectors, dataset=dataset, embeddings=embeddings),
        encoder=(
            EncoderInfo(store.spec.id, store.spec.name, store.dim, store.spec.model_id)
            if store is not None
            else None
        ),
        metrics={
            "validation": {
                name.removeprefix("validation/"): value
                for name, value in chosen.items()
                if name.startswith("validation/")
            },
            "epoch": state["epoch"],
            "history": history,
        },
        fitted_on=fitted_on,
        half_life=half_life,
        key=key,
        parents=parents,
    )


def _network(
    config: Config, data: TrainingData, weights: Mapping[str, torch.Tensor]
) -> MultiTaskModel:
    model = build_model(config.model, config.tasks, data.sizes)
    model.load_state_dict(weights)
    return model.eval()


def _social_rows(
    config: Config,
    model: MultiTaskModel,
    data: TrainingData,
    vectors: ItemVectors,
    *,
    dataset: str,
    embeddings: str,
) -> SocialRows | None:
    """Give all kept links, and social vectors that know all kept events; None: no social task."""
    if data.social is None:
        return None
    everything, _ = load_training_data(
        config, dataset=dataset, embeddings=embeddings, fitted_on=SPLITS
    )
    assert everything.social is not None, "the same configuration"
    found = social_vectors(model, config, everything, vectors)
    return SocialRows(everything.social.graph.links, found)


def _with_recency(
    config: Config,
    state: dict[str, Any],
    data: TrainingData,
    known: TrainingData,
    held_out: Histories,
) -> tuple[dict[str, Any], float | None]:
    """Add recent popularity to the items' biases, of the weights that ship and of those judged.

    Validation chooses how much; what ships counts the events that the model was fitted on. Also
    gives the half-life, by which users of whom nothing is known get what is popular; None:
    validation leaves it out.
    """
    judged = _network(config, known, state.get("validated", state["export"]))
    chosen = choose_recency(judged, config, known, held_out)
    event(logger, "train.recency", **chosen)

    def added(weights: Mapping[str, torch.Tensor], events: Histories) -> dict[str, torch.Tensor]:
        popular = RecentPopularity(events, known.sizes.num_items, chosen["half_life"])
        more = torch.from_numpy(chosen["scale"] * popular.values)[:, None]
        return {**weights, _BIAS: weights[_BIAS] + more.to(weights[_BIAS])}

    shipped = {**state, "export": added(state["export"], data.train)}
    if "validated" in state:
        shipped["validated"] = added(state["validated"], known.train)
    return shipped, chosen["half_life"] if chosen["scale"] else None


def _retrieval_terms(
    config: Config,
    judged: MultiTaskModel,
    data: TrainingData,
    known: TrainingData,
    held_out: Histories,
) -> tuple[ItemItem | None, ImplicitFactors | None]:
    """Fit what is added to the logits on the events that the model was fitted on.

    Validation (`held_out`) chooses settings and scales beside the network that it judged, which
    knows what came before (`known`).
    """
    size = data.sizes.num_items
    is_again = known.train.num_events != data.train.num_events
    items, ials = None, None
    of_items: dict[str, float] = {}
    term = _pairs_term(config, size)
    if term is not None:
        items, of_items = choose_items(judged, config, term, known, held_out)
        event(logger, f"train.{term.name}", **of_items)
    if config.model.ials is not None:
        ials, items, chosen = choose_ials(judged, config, known, held_out, items)
        event(logger, "train.ials", **chosen)
        of_items["scale"] = of_items.get("scale", 0.0) * chosen["item_item"]
        if ials is not None and is_again:
            refit = fit_ials(
                data.train,
                size,
                factors=int(chosen["factors"]),
                alpha=chosen["alpha"],
                reg=chosen["reg"],
                seed=config.run.seed,
            )
            if chosen["ridge"]:
                refit = refit.with_texts(data.items.text.numpy(), chosen["ridge"])
            ials = refit.scaled(chosen["scale"])
    if term is not None and items is not None and is_again:
        ((_, refitted),) = fit_items(term.narrowed(of_items), data.train, size)
        items = refitted.scaled(of_items["scale"])
    return items, ials


def _pairs_term(config: Config, size: int) -> ItemItemTerm | NextItemTerm | None:
    """Give the term of pairs of items, if there is one and N is not too many for it."""
    term = config.model.item_item or config.model.next_item
    if term is None or size - NUM_SPECIAL <= term.max_items:
        return term
    logger.warning(
        "model.%s was left out: the catalogue has %d items, more than model.%s.max_items = %d",
        *(term.name, size - NUM_SPECIAL, term.name, term.max_items),
    )
    return None


def _factors(
    config: Config,
    judged: MultiTaskModel,
    data: TrainingData,
    known: TrainingData,
    held_out: Histories,
) -> FactorTerm | None:
    """Factorise the events that the model was fitted on; how it joins is chosen by validation."""
    assert config.model.factors is not None, "a configuration with factors"
    factors = _fit_factors(config, known)
    if factors is None:
        logger.warning(
            'model.factors was left out: no training event has a value of "%s"',
            config.model.factors.column,
        )
        return None
    term, figures = join_factors(judged, config, known, held_out, factors)
    event(logger, "train.factors", joined=",".join(term.weights) or "no task", **figures)
    if known.train.num_events == data.train.num_events:
        return term
    refitted = _fit_factors(config, data)
    assert refitted is not None, "more events than before"
    return replace(term, factors=refitted)


def _fit_factors(config: Config, data: TrainingData) -> Factors | None:
    """Draw item vectors from the training events, saying now and then how far that is."""
    term = config.model.factors
    assert term is not None, "a configuration with factors"
    said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > _SAY_S:
            said = time.monotonic()
            event(logger, "train.factors", sweep=done, sweeps=total)

    return fit_factors(
        data.train,
        data.train.numbers[term.column],
        data.sizes.num_items,
        rank=term.rank,
        draws=term.draws,
        burn_in=term.burn_in,
        thin=term.thin,
        seed=config.run.seed,
        on_sweep=show,
    )
