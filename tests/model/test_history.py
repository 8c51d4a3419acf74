import pytest
import torch
from torch import nn

from mtrec.model.history import CausalBlock, SequenceEncoder


def _encoder(**changes: object) -> SequenceEncoder:
    torch.manual_seed(0)
    settings = {"dim": 8, "num_blocks": 2, "num_heads": 2, "length": 6, "dropout": 0.0}
    return SequenceEncoder(**{**settings, **changes}).eval()


def test_a_state_knows_nothing_of_later_events() -> None:
    encoder, prefix, events = _encoder(), torch.randn(1, 8), torch.randn(1, 5, 8)
    changed = events.clone()
    changed[0, 3] = torch.randn(8)
    before, after = encoder(prefix, events), encoder(prefix, changed)
    # state t has seen events 0..t-1
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-3


def test_padding_on_the_right_changes_no_used_state() -> None:
    encoder, prefix, events = _encoder(), torch.randn(2, 8), torch.randn(2, 3, 8)
    padded = torch.cat([events, torch.zeros(2, 2, 8)], dim=1)
    assert torch.allclose(encoder(prefix, events), encoder(prefix, padded)[:, :4], atol=1e-6)


def test_a_block_equals_torchs_pre_norm_encoder_layer() -> None:
    torch.manual_seed(1)
    ours = CausalBlock(dim=8, num_heads=2, dropout=0.0).eval()
    theirs = nn.TransformerEncoderLayer(
        8, 2, 32, 0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.projection.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.projection.bias)
        theirs.self_attn.out_proj.load_state_dict(ours.output.state_dict())
        theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
        theirs.norm2.load_state_dict(ours.feed_forward[0].state_dict())
        theirs.linear1.load_state_dict(ours.feed_forward[1].state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward[3].state_dict())
    states = torch.randn(3, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    expected = theirs(states, src_mask=mask, is_causal=True)
    assert torch.allclose(ours(states), expected, atol=1e-5)


def test_too_many_events_are_refused() -> None:
    with pytest.raises(AssertionError, match="7 events, at most 6"):
        _encoder()(torch.zeros(1, 8), torch.zeros(1, 7, 8))
