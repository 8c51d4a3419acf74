import numpy as np
import pytest
import torch

from mtrec.model.ranking import Context, UserStates


def _context(num_rows: int) -> Context:
    return Context(torch.zeros(num_rows, 0), torch.zeros(num_rows, 0), {})


def test_residuals_are_shrunk_means_of_the_other_events(parts, all_states) -> None:
    model, _, batch, users, vectors = parts
    with torch.no_grad():
        model.ranking.usual.weight[:, 0] = torch.arange(22) / 10
    residual = all_states(model, batch, users, vectors).residual
    length = int(batch["length"][0])
    own = (batch["numbers"][0, :, 0] - batch["item"][0] / 10)[:length].numpy()
    others = own.sum() - own[2]
    assert residual[0, 2, 0].item() == pytest.approx(others / (length - 1 + 5.0), rel=1e-4)
    assert residual[0, length, 0].item() == pytest.approx(own.sum() / (length + 5.0), rel=1e-4)


def test_taste_is_the_asymmetric_sum_of_svdpp(parts, all_states) -> None:
    model, _, batch, users, vectors = parts
    with torch.no_grad():
        model.ranking.usual.weight[:, 0] = torch.arange(22) / 10
    taste = all_states(model, batch, users, vectors).taste
    length = int(batch["length"][0])
    expected = torch.zeros_like(taste[0, 0])
    for event in range(length):
        item = int(batch["item"][0, event])
        liked = batch["numbers"][0, event, 0] - item / 10
        expected += model.ranking.implicit.weight[item]
        expected += liked * model.ranking.explicit.weight[item]
    assert torch.allclose(taste[0, length], expected / (length + 1) ** 0.5, atol=1e-5)


def test_a_regression_starts_as_the_biased_baseline(parts) -> None:
    model, *_, vectors = parts
    with torch.no_grad():
        model.ranking.usual.weight[5] = 0.4
        model.ranking.item_bias.weight[5, 0] = 0.1
    users = UserStates(torch.randn(1, 8), torch.tensor([[0.3]]), torch.randn(1, 16))
    logits = model.rank(users, torch.tensor([5]), vectors, _context(1))
    assert logits["stars"].item() == pytest.approx(0.4 + 0.1 + 0.3, rel=1e-6)
    # label scale: mean 3, deviation 1.25
    assert model.predict(logits)["stars"].item() == pytest.approx(3 + 1.25 * 0.8, rel=1e-6)


def test_predictions_stay_in_the_declared_range(parts) -> None:
    model, *_ = parts
    logits = {"stars": torch.tensor([-9.0, 9.0]), "like": torch.tensor([-9.0, 9.0])}
    predicted = model.predict(logits)
    assert predicted["stars"].tolist() == [1.0, 5.0]
    np.testing.assert_allclose(predicted["like"], 1 / (1 + np.exp([9.0, -9.0])), rtol=1e-5)
