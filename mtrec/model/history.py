"""User encoders over item history: `sequence` reads events in their order, `set` without it.

Both turn a profile and T events into T + 1 states with one rule: state t may be used to rank event
t, for it knows nothing of it, and the state at a window's length knows every event. A set gives
only the states that are asked for, and who asks for that at the length alone (`last`) does not pay
for the others. Pure torch; take vectors, know of items only which are the same.

Shape letters: B users, T events of the longest, V events of all, S states that are asked for, D
width, H heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrec.model.dropout import Dropout
from mtrec.model.ragged import Ragged
from mtrec.modelconfig import History


@dataclass(frozen=True, slots=True)
class Events:
    """The events of B windows, end to end.

    Attributes:
        layout: which event is where.
        vector: (V, D), what each of them is.
        item: (V,) int64, their items; 0 hidden, 1 unknown.
    """

    layout: Ragged
    vector: Tensor
    item: Tensor


class SequenceEncoder(nn.Module):
    """Encode a prefix and T events into T + 1 states; state t knows the prefix and t events.

    Events come oldest first and padded on the right, so the causal mask alone keeps padding out of
    every state that is used.

    Pre-norm causal transformer (Kang and McAuley 2018, with the norms of Klenitskiy and Vasilev
    2023), learned positions.
    """

    def __init__(
        self, *, dim: int, num_blocks: int, num_heads: int, length: int, dropout: float
    ) -> None:
        super().__init__()
        self.length = length
        self.positions = nn.Embedding(length + 1, dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            CausalBlock(dim=dim, num_heads=num_heads, dropout=dropout) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, prefix_BD: Tensor, events: Events, row_S: Tensor, place_S: Tensor) -> Tensor:
        """Give the states (S, D) of windows `row_S` at places `place_S`, 0 to their lengths.

        In training, `noise.rows` names the B windows.

        Raises:
            AssertionError: more events than the encoder has positions for.
        """
        states_BTD = self._embed(prefix_BD, events)
        for block in self.blocks:
            states_BTD = block(states_BTD)
        return self.norm(states_BTD[row_S, place_S])  # type: ignore[no-any-return]  # a Tensor

    def last(self, prefix_BD: Tensor, events: Events) -> Tensor:
        """Give only the states (B, D) at the windows' lengths."""
        states_BTD = self._embed(prefix_BD, events)
        *blocks, final = self.blocks
        for block in blocks:
            states_BTD = block(states_BTD)
        assert isinstance(final, CausalBlock)
        return self.norm(final.last(states_BTD, events.layout))  # type: ignore[no-any-return]  # a Tensor

    def _embed(self, prefix_BD: Tensor, events: Events) -> Tensor:
        events_BTD = events.layout.pad(events.vector)
        states_BTD = torch.cat([prefix_BD[:, None], events_BTD], dim=1)
        width = states_BTD.shape[1]
        assert width <= self.length + 1, f"{width - 1} events, at most {self.length} fit"
        return self.dropout(states_BTD + self.positions.weight[:width])  # type: ignore[no-any-return]


class CausalBlock(nn.Module):
    """Causal self-attention and a feed-forward layer, both residual and pre-norm."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
            Dropout(dropout),
        )
        self.dropout = Dropout(dropout)

    def forward(self, states_BTD: Tensor) -> Tensor:
        """Give the next layer's states (B, T, D)."""
        batch, width, dim = states_BTD.shape
        joined = self.projection(self.attention_norm(states_BTD))
        query, key, value = (
            part.view(batch, width, self.num_heads, dim // self.num_heads).transpose(1, 2)
            for part in joined.chunk(3, dim=-1)
        )
        # No dropout of its own: torch would draw it from the process's stream (`model.dropout`).
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, width, dim)
        states_BTD = states_BTD + self.dropout(self.output(mixed))
        return states_BTD + self.feed_forward(states_BTD)  # type: ignore[no-any-return]  # a Tensor

    def last(self, states_BTD: Tensor, layout: Ragged) -> Tensor:
        """Give only the next layer's states behind the last events: (B, D)."""
        batch, width, dim = states_BTD.shape
        heads = (self.num_heads, dim // self.num_heads)
        normed = self.attention_norm(states_BTD)
        weight, bias = self.projection.weight, self.projection.bias
        query = functional.linear(layout.at_end(normed), weight[:dim], bias[:dim])
        key, value = (
            part.view(batch, width, *heads).transpose(1, 2)
            for part in functional.linear(normed, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        )
        seen = None
        if not layout.is_full:
            places = torch.arange(width, device=states_BTD.device)
            seen = (places <= layout.length[:, None])[:, None, None]
        mixed = functional.scaled_dot_product_attention(
            query.view(batch, *heads)[:, :, None], key, value, attn_mask=seen
        )
        mixed = self.dropout(self.output(mixed.reshape(batch, dim)))
        state_BD = layout.at_end(states_BTD) + mixed
        return state_BD + self.feed_forward(state_BD)  # type: ignore[no-any-return]  # a Tensor


class SetEncoder(nn.Module):
    """Encode a prefix and a set of T events into T + 1 states, whatever the order of the events.

    A state is the prefix plus a linear map of the events' sum over sqrt(their number + 1), through
    feed-forward blocks: a denoising autoencoder of a user's items (Liang et al. 2018) whose input
    is what the items are, not only which. State t leaves out every event of t's item, so that a
    second event of the same item does not give it away. No event sees another before the sum:
    what attends to t would tell of it.
    """

    def __init__(self, *, dim: int, num_blocks: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(dim),
                nn.Linear(dim, 4 * dim),
                nn.GELU(),
                Dropout(dropout),
                nn.Linear(4 * dim, dim),
                Dropout(dropout),
            )
            for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, prefix_BD: Tensor, events: Events, row_S: Tensor, place_S: Tensor) -> Tensor:
        """Give the states (S, D) of windows `row_S` at places `place_S`, 0 to their lengths.

        An event of item 0 (hidden) or 1 (unknown, as in requests) does not count. In training,
        `noise.rows` names the S states.
        """
        # A number for each window and item.
        _, group_V = torch.unique((events.layout.row << 32) + events.item, return_inverse=True)
        summed = events.layout.total_without(self._parts(events), row_S, place_S, group_V)
        return self._states(prefix_BD[row_S], summed)

    def last(self, prefix_BD: Tensor, events: Events) -> Tensor:
        """Give only the states (B, D) that know every event."""
        return self._states(prefix_BD, events.layout.total(self._parts(events)))

    def _parts(self, events: Events) -> Tensor:
        """Give what each event puts into a sum, with a last column that counts it: (V, D + 1)."""
        known_V1 = (events.item > 1).to(events.vector.dtype)[:, None]
        return torch.cat([self.value(events.vector) * known_V1, known_V1], dim=-1)

    def _states(self, prefix: Tensor, summed: Tensor) -> Tensor:
        """Give states (..., D) of prefixes (..., D) and sums (..., D + 1)."""
        states = self.dropout(prefix + summed[..., :-1] / (summed[..., -1:] + 1.0).sqrt())
        for block in self.blocks:
            states = states + block(states)
        return self.norm(states)  # type: ignore[no-any-return]  # a Tensor


def build_history(config: History, *, dim: int) -> SequenceEncoder | SetEncoder:
    """Build the encoder that a configuration asks for; weights from torch's RNG."""
    match config.kind:
        case "sequence":
            return SequenceEncoder(
                dim=dim,
                num_blocks=config.num_blocks,
                num_heads=config.num_heads,
                length=config.length,
                dropout=config.dropout,
            )
        case "set":
            return SetEncoder(dim=dim, num_blocks=config.num_blocks, dropout=config.dropout)
