"""User encoders over item history: `sequence` reads events in their order, `set` without it.

Both turn a profile and T events into T + 1 states with one rule: state t may be used to rank event
t, for it knows nothing of it, and the state at a window's length knows every event. Who asks for
that one alone (`last`) does not pay for the others. Pure torch; take vectors, know of items only
which are the same.

Shape letters: B users, T events, D width, H heads, X columns that are summed, G groups of events.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrec.config import History
from mtrec.model.dropout import Dropout


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

    def forward(self, prefix_BD: Tensor, events_BTD: Tensor, _item_BT: Tensor) -> Tensor:
        """Give the states (B, T + 1, D).

        Raises:
            AssertionError: more events than the encoder has positions for.
        """
        states_BTD = self._embed(prefix_BD, events_BTD)
        for block in self.blocks:
            states_BTD = block(states_BTD)
        return self.norm(states_BTD)  # type: ignore[no-any-return]  # a Tensor

    def last(
        self, prefix_BD: Tensor, events_BTD: Tensor, _item_BT: Tensor, length_B: Tensor
    ) -> Tensor:
        """Give only the states (B, D) at the windows' lengths (B,) int64."""
        states_BTD = self._embed(prefix_BD, events_BTD)
        *blocks, final = self.blocks
        for block in blocks:
            states_BTD = block(states_BTD)
        assert isinstance(final, CausalBlock)
        return self.norm(final.at(states_BTD, length_B))  # type: ignore[no-any-return]  # a Tensor

    def _embed(self, prefix_BD: Tensor, events_BTD: Tensor) -> Tensor:
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

    def at(self, states_BTD: Tensor, place_B: Tensor) -> Tensor:
        """Give only the next layer's states at places (B,) int64: (B, D)."""
        batch, width, dim = states_BTD.shape
        heads = (self.num_heads, dim // self.num_heads)
        row = torch.arange(batch, device=states_BTD.device)
        normed = self.attention_norm(states_BTD)
        weight, bias = self.projection.weight, self.projection.bias
        query = functional.linear(normed[row, place_B], weight[:dim], bias[:dim])
        key, value = (
            part.view(batch, width, *heads).transpose(1, 2)
            for part in functional.linear(normed, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        )
        seen_BT = torch.arange(width, device=states_BTD.device) <= place_B[:, None]
        mixed = functional.scaled_dot_product_attention(
            query.view(batch, *heads)[:, :, None], key, value, attn_mask=seen_BT[:, None, None]
        )
        state_BD = states_BTD[row, place_B] + self.dropout(self.output(mixed.reshape(batch, dim)))
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

    def forward(self, prefix_BD: Tensor, events_BTD: Tensor, item_BT: Tensor) -> Tensor:
        """Give the states (B, T + 1, D).

        Args:
            prefix_BD: what is known besides the events.
            events_BTD: the events.
            item_BT: int64, their items; an event of item 0 (padding, or hidden) or 1 (unknown, as
                in requests) does not count.
        """
        parts = self._parts(events_BTD, item_BT)
        return self._states(prefix_BD[:, None], sum_without_each(parts, item_BT))

    def last(
        self, prefix_BD: Tensor, events_BTD: Tensor, item_BT: Tensor, _length_B: Tensor
    ) -> Tensor:
        """Give only the states (B, D) that know every event."""
        return self._states(prefix_BD, self._parts(events_BTD, item_BT).sum(1))

    def _parts(self, events_BTD: Tensor, item_BT: Tensor) -> Tensor:
        """Give what each event puts into a sum, with a last column that counts it."""
        known_BT1 = (item_BT > 1).to(events_BTD.dtype)[..., None]
        return torch.cat([self.value(events_BTD) * known_BT1, known_BT1], dim=-1)

    def _states(self, prefix: Tensor, summed: Tensor) -> Tensor:
        """Give states (..., D) of prefixes (..., D) and sums (..., D + 1)."""
        states = self.dropout(prefix + summed[..., :-1] / (summed[..., -1:] + 1.0).sqrt())
        for block in self.blocks:
            states = states + block(states)
        return self.norm(states)  # type: ignore[no-any-return]  # a Tensor


def sum_without_each(values_BTX: Tensor, item_BT: Tensor) -> Tensor:
    """Give the sum over T without the events of each t's item, and the whole last: (B, T + 1, X).

    Args:
        values_BTX: what to sum, float32.
        item_BT: int64, the items; none is below 0.
    """
    columns = values_BTX.shape[-1]
    row_B1 = torch.arange(len(item_BT), device=item_BT.device)[:, None]
    place = (row_B1 << 32) + item_BT  # a number for each window and item
    groups, group_of = torch.unique(place, return_inverse=True)
    sums_GX = values_BTX.new_zeros(len(groups), columns)
    sums_GX = sums_GX.index_add(0, group_of.flatten(), values_BTX.reshape(-1, columns))
    total_B1X = values_BTX.sum(1, keepdim=True)
    return torch.cat([total_B1X - sums_GX[group_of], total_B1X], dim=1)


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
