import numpy as np
import torch

from mtrec.model.towers import (
    FeatureInputs,
    FeatureTower,
    ItemTower,
    drop_rows,
    whitening_matrix,
)


def _inputs(num_rows: int, *, text: torch.Tensor | None = None) -> FeatureInputs:
    text = torch.zeros(num_rows, 0) if text is None else text
    return FeatureInputs(
        numbers=torch.arange(num_rows, dtype=torch.float32)[:, None],
        categories={"kind": torch.arange(num_rows) % 3},
        multi={"tags": torch.stack([torch.arange(num_rows) % 4, torch.zeros(num_rows).long()], 1)},
        text=text,
        has_text=(text.abs().sum(1) > 0).float(),
    )


def _tower(text_width: int = 0) -> FeatureTower:
    torch.manual_seed(0)
    return FeatureTower(
        dim=4,
        numbers=1,
        categories={"kind": 3},
        multi={"tags": 4},
        text_width=text_width,
        text_dim=3,
    )


def test_whitening_makes_columns_uncorrelated_with_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    white = (rows - rows.mean(0)) @ whitening_matrix(rows, 4)
    covariance = np.cov(white.numpy().T)
    np.testing.assert_allclose(covariance, np.eye(4), atol=1e-4)


def test_whitening_of_flat_directions_gives_zeros_not_infinity() -> None:
    rows = torch.zeros(10, 3)
    rows[:, 0] = torch.arange(10)
    matrix = whitening_matrix(rows, 3)
    assert torch.isfinite(matrix).all()
    assert torch.equal(matrix[:, 1:], torch.zeros(3, 2))


def test_a_feature_tower_sums_its_parts() -> None:
    tower, inputs = _tower(), _inputs(6)
    row = 5  # number 5, kind 2, tags [1]
    expected = (
        tower.numbers.weight[:, 0] * 5.0
        + tower.categories["kind"].weight[2]
        + tower.multi["tags"].weight[1]
    )
    assert torch.allclose(tower(inputs)[row], expected, atol=1e-6)


def test_a_row_without_text_gets_nothing_from_the_text_part() -> None:
    tower = _tower(text_width=5)
    text = torch.randn(4, 5)
    text[2] = 0.0
    with_text, without = tower(_inputs(4, text=text)), tower(_inputs(4, text=torch.zeros(4, 5)))
    assert torch.allclose(with_text[2], without[2])
    assert not torch.allclose(with_text[1], without[1])


def test_an_untrained_item_is_its_content_alone() -> None:
    tower = ItemTower(_tower(), num_items=6, dim=4)
    torch.nn.init.ones_(tower.bias.weight)
    trained = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    vectors = tower(_inputs(6), trained)
    assert torch.equal(vectors.collaborative[4], torch.zeros(4))
    assert vectors.bias.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert torch.equal(vectors.fused[4], vectors.content[4])
    assert vectors.content[4].abs().sum() > 0


def test_padding_and_unknown_are_zeros_even_if_called_trained() -> None:
    vectors = ItemTower(_tower(), num_items=6, dim=4)(_inputs(6), torch.ones(6))
    for part in (vectors.content[:2], vectors.collaborative[:2], vectors.bias[:2]):
        assert not part.any()


def test_rows_are_dropped_at_the_given_rate_and_never_come_back_untrained() -> None:
    trained = torch.ones(20_000)
    trained[:10_000] = 0.0
    kept = drop_rows(trained, 0.3, torch.Generator().manual_seed(0))
    assert not kept[:10_000].any()
    # standard error of the share: sqrt(.3 * .7 / 10000) = .0046
    assert abs(kept[10_000:].mean().item() - 0.7) < 0.02


def test_texts_whitened_beforehand_give_the_same_vectors() -> None:
    torch.manual_seed(0)
    tower = FeatureTower(dim=4, numbers=1, categories={}, multi={}, text_width=6, text_dim=3).eval()
    text = 3.0 + torch.randn(9, 6) @ torch.randn(6, 6)
    tower.fit_whitening(text)
    inputs = FeatureInputs(torch.randn(9, 1), {}, {}, text, (torch.arange(9) % 3 > 0).float())
    whitened = tower.whiten(inputs)
    assert torch.allclose(whitened.text.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(whitened.text.T.cov(), torch.eye(3), atol=1e-4)
    assert torch.allclose(tower(whitened), tower(inputs), atol=1e-6)
    assert torch.allclose(tower(whitened.rows(torch.tensor([4]))), tower(inputs)[4:5], atol=1e-6)
    assert tower.whiten(whitened) is whitened
