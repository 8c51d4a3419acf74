import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtrec import export
from mtrec.bundle import Bundle, load_bundle
from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.itemitem import Amount, NextItemSums, fit_ease
from mtrec.model.batches import TrainingData
from mtrec.model.fit import start_state
from mtrec.model.loading import load_training_data

pytestmark = pytest.mark.ray


@dataclass
class Exporter:
    """Exports a network that was never trained: what is fitted beside it does not need that."""

    config: Config
    workdir: Path
    bundles: Path

    def __call__(self, fitted_on: list[str], **model: object) -> Bundle:
        tree = self.config.model_dump(mode="json")
        tree["model"] |= {"next_item": None, **model}
        config = parse_config(tree)
        state = start_state(config, self.data(["train"]), torch.device("cpu"))
        saved: dict[str, Any] = {"export": state.export_weights(), "epoch": 1, "history": []}
        saved["history"] = [{"epoch": 1, "validation/a/ndcg@10": 0.5, "loss": 2.0}]
        export.export_bundle(
            config,
            {**saved, "validated": saved["export"]},
            fitted_on=fitted_on,
            dataset=str(self.workdir / "dataset"),
            embeddings=str(self.workdir / "embeddings"),
            bundles=str(self.bundles),
            key="k" * 16,
            parents={},
        )
        return load_bundle(str(self.bundles))

    def data(self, fitted_on: list[str]) -> TrainingData:
        return load_training_data(
            self.config,
            dataset=str(self.workdir / "dataset"),
            embeddings=str(self.workdir / "embeddings"),
            fitted_on=fitted_on,
        )[0]


@pytest.fixture
def exporter(planted_run, tmp_path: Path) -> Exporter:
    config, workdir = planted_run
    return Exporter(config, workdir, tmp_path / "bundles")


@pytest.mark.parametrize("name", ["item_item", "next_item"])
def test_what_is_fitted_beside_a_refitted_network_has_seen_validation_too(
    exporter: Exporter, name: str
) -> None:
    term: dict[str, Any] = {"reg": [5.0], "top": 8, "scales": [2.0]}
    if name == "next_item":
        term["half_lives"] = [3.0]
    both = exporter(["train", "validation"], **{name: term}).item_item
    assert both is not None
    assert both.half_life == (3.0 if name == "next_item" else None)
    found = both.weights.toarray()

    def difference(fitted_on: list[str]) -> float:
        data = exporter.data(fitted_on)
        size = data.sizes.num_items
        if name == "next_item":
            fitted = NextItemSums.of(data.train, size, 3.0).fit(5.0, 8)
        else:
            fitted = fit_ease(data.train, size, reg=5.0, top=8)
        expected = fitted.weights.toarray()
        scale = (found * expected).sum() / (expected * expected).sum()
        return float(np.abs(found - scale * expected).max() / np.abs(found).max())

    assert difference(["train", "validation"]) < 1e-6
    assert difference(["train"]) > 0.01


def test_a_bundle_knows_how_much_an_event_counts(exporter: Exporter) -> None:
    term = {"amount": "rating", "reg": [5.0], "top": 8, "scales": [2.0]}
    found = exporter(["train"], item_item=term).item_item
    assert found is not None
    train = exporter.data(["train"]).train
    mean = float(np.nanmean(train.numbers["rating"]))
    assert found.amount == Amount("rating", pytest.approx(mean))
    expected = fit_ease(train, found.weights.shape[0], reg=5.0, top=8, amount=found.amount)
    np.testing.assert_allclose(
        found.weights.toarray(), 2.0 * expected.weights.toarray(), rtol=1e-5, atol=1e-7
    )


def test_recent_popularity_is_in_the_biases_and_knows_validation_after_a_refit(
    exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"half_life": 0.2, "scale": 3.0, "ndcg": 0.5, "ndcg_without": 0.4}
    monkeypatch.setattr(export, "choose_recency", lambda *_: chosen)

    for fitted_on in (["train"], ["train", "validation"]):
        train = exporter.data(fitted_on).train
        counts = np.zeros(exporter.data(fitted_on).sizes.num_items)
        span = train.timestamp.max() - train.timestamp.min()
        for item, time in zip(train.item_index, train.timestamp, strict=True):
            counts[item] += 0.5 ** ((train.timestamp.max() - time) / span / 0.2)
        plain, popular = exporter(fitted_on), exporter(fitted_on, recency={})
        assert (plain.half_life, popular.half_life) == (None, 0.2)
        added = popular.vectors.bias - plain.vectors.bias
        met = counts > 0
        assert added[met] == pytest.approx(3.0 * np.log(1 + counts[met]), rel=1e-4)
        assert not added[~met].any()
        for name in ("content", "collaborative"):
            assert np.array_equal(getattr(popular.vectors, name), getattr(plain.vectors, name))


@pytest.mark.parametrize("name", ["item_item", "next_item"])
def test_a_catalogue_that_is_too_large_has_no_term_of_pairs_of_items_and_says_so(
    exporter: Exporter, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.WARNING, "mtrec.train"):
        bundle = exporter(["train"], **{name: {"max_items": 5}})
    assert bundle.item_item is None
    assert f"more than model.{name}.max_items = 5" in caplog.text


def test_a_column_without_values_leaves_factors_out_and_says_so(
    exporter: Exporter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "fit_factors", lambda *_, **__: None)
    with caplog.at_level(logging.WARNING, "mtrec.train"):
        bundle = exporter(["train"], factors={"column": "rating"})
    assert bundle.factors is None
    assert 'no training event has a value of "rating"' in caplog.text


def test_a_bundle_says_what_validation_found_in_the_epoch_that_ships(exporter: Exporter) -> None:
    bundle = exporter(["train"])
    assert bundle.metrics["validation"] == {"a/ndcg@10": 0.5}
    assert (bundle.metrics["epoch"], bundle.fitted_on) == (1, ["train"])
