import numpy as np
import torch
from scipy.special import erf

from mtrec.model.experts import SharedBottom


def test_the_shared_bottom_is_a_stack_of_linear_and_gelu_layers() -> None:
    torch.manual_seed(0)
    bottom = SharedBottom(input_dim=3, hidden=[4, 2], tasks=["a"], dropout=0.5).eval()
    inputs = torch.randn(5, 3)
    expected = inputs.numpy()
    for layer in (bottom.layers[0], bottom.layers[3]):
        expected = expected @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        expected = expected * 0.5 * (1 + erf(expected / np.sqrt(2)))
    np.testing.assert_allclose(bottom(inputs)["a"].detach().numpy(), expected, atol=1e-6)


def test_all_tasks_of_a_shared_bottom_read_the_same_representation() -> None:
    bottom = SharedBottom(input_dim=3, hidden=[4], tasks=["a", "b"], dropout=0.0)
    outputs = bottom(torch.randn(2, 3))
    assert list(outputs) == ["a", "b"]
    assert outputs["a"] is outputs["b"]
    assert outputs["a"].shape == (2, bottom.output_dim)
