"""Seeded dropout: shares, independence of how a batch is cut, and the reference hash."""

import numpy as np
import pytest
import torch
from torch import nn

from mtrec.data import splits
from mtrec.model.dropout import Dropout, Noise, _mix, bind_noise


def layer(p: float = 0.25, *, rows: list[int], seed: int = 0, step: int = 0) -> Dropout:
    made = Dropout(p)
    made.noise = Noise(seed, step, torch.tensor(rows))
    return made


def test_the_hash_is_that_of_splitmix64() -> None:
    # The first outputs of splitmix64 for the states 0 and 1.
    found = _mix(torch.tensor([0, 1])).numpy().view(np.uint64)
    assert [hex(value) for value in found] == ["0xe220a8397b1dcdaf", "0x910a2dec89025cc1"]


def test_elements_go_with_their_probability_and_the_sum_stays() -> None:
    made = layer(0.25, rows=list(range(1000)))
    out = made(torch.ones(1000, 10, 20))
    share = float((out == 0).float().mean())
    # Standard deviation of the share of 200,000 elements is below .001; 5 of them.
    assert share == pytest.approx(0.25, abs=0.005)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    # No row, no column and no place is treated apart.
    for dim in ((1, 2), (0, 2), (0, 1)):
        means = (out == 0).float().mean(dim)
        spread = (0.25 * 0.75 / (out.numel() / means.numel())) ** 0.5
        assert float((means - 0.25).abs().max()) < 6 * spread


def test_masks_do_not_depend_on_how_the_rows_are_shared_out() -> None:
    inputs = torch.ones(6, 5, 4)
    whole = layer(rows=[0, 1, 2, 3, 4, 5])(inputs)
    assert torch.equal(layer(rows=[1, 3, 5])(inputs[:3]), whole[1::2])
    # A shorter width is a prefix: rows are padded on the right.
    assert torch.equal(layer(rows=[0, 1])(inputs[:2, :3]), whole[:2, :3])


def test_seed_step_layer_and_row_all_matter() -> None:
    inputs = torch.ones(4, 100)
    rows = [0, 1, 2, 3]
    first = layer(rows=rows)(inputs)
    other = layer(rows=rows)
    other.layer = 1
    for changed in (layer(rows=rows, seed=1), layer(rows=rows, step=1), other):
        assert not torch.equal(changed(inputs), first)
    assert not torch.equal(first[0], first[1])


def test_it_is_the_identity_in_evaluation_and_passes_gradients_of_what_it_kept() -> None:
    made = layer(0.5, rows=[0, 1])
    inputs = torch.ones(2, 50, requires_grad=True)
    out = made(inputs)
    out.sum().backward()
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, out.detach())
    assert made.eval()(inputs) is inputs


def test_every_layer_of_a_network_gets_one_noise_and_its_own_number() -> None:
    network = nn.Sequential(Dropout(0.5), nn.Linear(4, 4), nn.Sequential(Dropout(0.5)))
    noise = bind_noise(network)
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    assert [each.layer for each in layers] == [0, 1]
    assert all(each.noise is noise for each in layers)


def test_rows_that_are_not_named_are_a_mistake() -> None:
    with pytest.raises(AssertionError, match="3 rows, but 2 are named"):
        layer(rows=[0, 1])(torch.ones(3, 4))


def test_the_hash_of_numpy_and_of_torch_agree() -> None:
    values = np.arange(-5, 5)
    mixed = splits._finalise(values.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    assert (_mix(torch.from_numpy(values)).numpy().view(np.uint64) == mixed).all()
