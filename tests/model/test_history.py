"""History encoders: a contract for both, the transformer against torch, the set against a loop."""

import pytest
import torch
from torch import Tensor, nn

from mtrec.model.dropout import bind_noise
from mtrec.model.history import CausalBlock, Events, SequenceEncoder, SetEncoder, build_history
from mtrec.model.ragged import Ragged
from mtrec.modelconfig import History, SequenceHistory, SetHistory

KINDS: dict[str, History] = {
    "sequence": SequenceHistory(num_blocks=2, num_heads=2, length=6, dropout=0.0),
    "set": SetHistory(kind="set", num_blocks=2, length=6, dropout=0.0),
}


def _items(batch: int, width: int) -> Tensor:
    """Different items for all events of a window."""
    return torch.arange(2, width + 2).repeat(batch, 1)


def _events(events_BTD: Tensor, item_BT: Tensor, length_B: Tensor | None = None) -> Events:
    """Lay padded windows end to end; without lengths, all of T events."""
    if length_B is None:
        length_B = torch.full((len(item_BT),), item_BT.shape[1])
    layout = Ragged(length_B, item_BT.shape[1])
    return Events(layout, layout.pack(events_BTD), layout.pack(item_BT))


def _states(
    encoder: nn.Module,
    prefix_BD: Tensor,
    events_BTD: Tensor,
    item_BT: Tensor,
    length_B: Tensor | None = None,
) -> Tensor:
    """Give all states (B, T + 1, D), zeros beyond the windows' lengths."""
    events = _events(events_BTD, item_BT, length_B)
    length_B = events.layout.length
    found = torch.zeros(len(item_BT), item_BT.shape[1] + 1, prefix_BD.shape[1])
    row_S, place_S = torch.nonzero(torch.arange(found.shape[1]) <= length_B[:, None]).T
    found[row_S, place_S] = encoder(prefix_BD, events, row_S, place_S)
    return found


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build_history(KINDS[request.param], dim=8).eval()


@pytest.fixture
def sequence() -> SequenceEncoder:
    torch.manual_seed(0)
    return build_history(KINDS["sequence"], dim=8).eval()


@pytest.fixture
def set_encoder() -> SetEncoder:
    torch.manual_seed(0)
    return build_history(KINDS["set"], dim=8).eval()


# ---- the contract of both -----------------------------------------------------------------------


@pytest.mark.parametrize("event", range(5))
def test_a_state_does_not_know_its_own_event(encoder: nn.Module, event: int) -> None:
    prefix, events, items = torch.randn(1, 8), torch.randn(1, 5, 8), _items(1, 5)
    changed, other = events.clone(), items.clone()
    changed[0, event], other[0, event] = torch.randn(8), 17
    before, after = (
        _states(encoder, prefix, events, items),
        _states(encoder, prefix, changed, other),
    )
    assert torch.allclose(before[:, event], after[:, event], atol=1e-6)


def test_the_last_state_alone_is_that_at_the_windows_length(encoder: nn.Module) -> None:
    prefix, events, items = torch.randn(4, 8), torch.randn(4, 5, 8), _items(4, 5)
    length = torch.tensor([5, 2, 0, 4])
    states = _states(encoder, prefix, events, items, length)
    last = encoder.last(prefix, _events(events, items, length))  # type: ignore[operator]  # a method
    assert torch.allclose(last, states[torch.arange(4), length], atol=1e-6)
    none = _events(events[:0], items[:0])
    assert encoder.last(prefix[:0], none).shape == (0, 8)  # type: ignore[operator]  # a method


@pytest.mark.parametrize("event", range(5))
def test_the_last_state_knows_every_event_and_the_prefix(encoder: nn.Module, event: int) -> None:
    prefix, events, items = torch.randn(1, 8), torch.randn(1, 5, 8), _items(1, 5)
    changed = events.clone()
    changed[0, event] = torch.randn(8)
    whole = _states(encoder, prefix, events, items)[:, 5]
    assert (whole - _states(encoder, prefix, changed, items)[:, 5]).abs().max() > 1e-3
    assert (whole - _states(encoder, torch.randn(1, 8), events, items)[:, 5]).abs().max() > 1e-3


def test_a_longer_window_beside_it_changes_no_state(encoder: nn.Module) -> None:
    prefix, events, items = torch.randn(3, 8), torch.randn(3, 5, 8), _items(3, 5)
    length = torch.tensor([3, 5, 0])
    together = _states(encoder, prefix, events, items, length)
    for row, own in enumerate(length.tolist()):
        one = slice(row, row + 1)
        alone = _states(encoder, prefix[one], events[one, :own], items[one, :own])
        assert torch.allclose(alone[0], together[row, : own + 1], atol=1e-6)


def test_states_come_in_the_order_in_which_they_are_asked_for(encoder: nn.Module) -> None:
    prefix, events, items = torch.randn(2, 8), torch.randn(2, 3, 8), _items(2, 3)
    states = _states(encoder, prefix, events, items)
    row, place = torch.tensor([1, 0, 1, 1]), torch.tensor([3, 1, 0, 3])
    found = encoder(prefix, _events(events, items), row, place)
    assert torch.allclose(found, states[row, place], atol=1e-6)


def test_a_batch_equals_a_loop_of_single_windows(encoder: nn.Module) -> None:
    prefix, events, items = torch.randn(3, 8), torch.randn(3, 5, 8), torch.randint(2, 6, (3, 5))
    together = _states(encoder, prefix, events, items)
    for row in range(3):
        one = slice(row, row + 1)
        alone = _states(encoder, prefix[one], events[one], items[one])
        assert torch.allclose(alone[0], together[row], atol=1e-6)


def test_no_window_and_a_window_without_events_have_states(encoder: nn.Module) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    no_window = _events(torch.zeros(0, 5, 8), torch.zeros(0, 5, dtype=torch.int64))
    assert encoder(torch.zeros(0, 8), no_window, nothing, nothing).shape == (0, 8)
    empty, length = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    state = _states(encoder, torch.randn(1, 8), torch.zeros(1, 1, 8), empty, length)
    assert torch.isfinite(state).all()
    assert state[:, 0].any()


def test_saved_and_loaded_weights_give_equal_states(encoder: nn.Module) -> None:
    kind = "set" if isinstance(encoder, SetEncoder) else "sequence"
    second = build_history(KINDS[kind], dim=8).eval()
    inputs = torch.randn(2, 8), torch.randn(2, 4, 8), _items(2, 4)
    assert not torch.equal(_states(second, *inputs), _states(encoder, *inputs))
    second.load_state_dict(encoder.state_dict())
    assert torch.equal(_states(second, *inputs), _states(encoder, *inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_dropout_are_those_of_the_configuration(kind: str) -> None:
    inputs = torch.randn(2, 8), torch.randn(2, 4, 8), _items(2, 4)
    changed = KINDS[kind].model_copy(update={"num_blocks": 1, "dropout": 0.5})
    encoder = build_history(changed, dim=8)
    assert len(encoder.blocks) == 1
    noise = bind_noise(encoder)
    # The sequence draws for a window, the set for a state.
    noise.rows = torch.arange(2 if kind == "sequence" else 10)
    first = _states(encoder, *inputs)
    noise.step += 1
    assert not torch.equal(first, _states(encoder, *inputs))


# ---- the sequence -------------------------------------------------------------------------------


def test_a_state_of_a_sequence_knows_nothing_of_later_events(sequence: SequenceEncoder) -> None:
    prefix, events, items = torch.randn(1, 8), torch.randn(1, 5, 8), _items(1, 5)
    changed = events.clone()
    changed[0, 3] = torch.randn(8)
    before, after = (
        _states(sequence, prefix, events, items),
        _states(sequence, prefix, changed, items),
    )
    # state t has seen events 0..t-1
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-3


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


def test_too_many_events_for_the_positions_are_refused(sequence: SequenceEncoder) -> None:
    with pytest.raises(AssertionError, match="7 events, at most 6"):
        _states(sequence, torch.zeros(1, 8), torch.zeros(1, 7, 8), _items(1, 7))


# ---- the set ------------------------------------------------------------------------------------


def test_the_order_of_a_sets_events_does_not_count(set_encoder: SetEncoder) -> None:
    prefix, events, items = torch.randn(2, 8), torch.randn(2, 5, 8), _items(2, 5)
    order = torch.tensor([3, 0, 4, 2, 1])
    straight = _states(set_encoder, prefix, events, items)
    permuted = _states(set_encoder, prefix, events[:, order], items[:, order])
    assert torch.allclose(straight[:, 5], permuted[:, 5], atol=1e-6)
    # and each event's own state goes with it
    assert torch.allclose(straight[:, order], permuted[:, :5], atol=1e-6)


def test_a_set_state_is_the_prefix_and_the_scaled_sum_of_other_items(
    set_encoder: SetEncoder,
) -> None:
    # Items 5 and 9 come twice; event 4 is hidden and event 5 of an unknown item.
    items = torch.tensor([[5, 9, 5, 7, 0, 1, 9]])
    prefix, events = torch.randn(1, 8), torch.randn(1, 7, 8)
    found = _states(set_encoder, prefix, events, items)[0]
    for place in range(8):
        own = -1 if place == 7 else items[0, place]
        kept = [t for t in (0, 1, 2, 3, 6) if items[0, t] != own]
        state = prefix[0]
        if kept:
            pooled = sum(set_encoder.value(events[0, t]) for t in kept)
            state = state + pooled / (len(kept) + 1) ** 0.5
        for block in set_encoder.blocks:
            state = state + block(state)
        assert torch.allclose(found[place], set_encoder.norm(state), atol=1e-5), place


def test_a_second_event_of_the_same_item_does_not_give_it_away(set_encoder: SetEncoder) -> None:
    prefix, events = torch.randn(1, 8), torch.randn(1, 4, 8)
    items, other = torch.tensor([[5, 9, 5, 7]]), torch.tensor([[6, 9, 6, 7]])
    changed = events.clone()
    changed[0, [0, 2]] = torch.randn(2, 8)
    before, after = (
        _states(set_encoder, prefix, events, items),
        _states(set_encoder, prefix, changed, other),
    )
    assert torch.allclose(before[:, [0, 2]], after[:, [0, 2]], atol=1e-6)
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)
