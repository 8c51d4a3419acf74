"""User encoder over item history: a causal transformer whose state after t events predicts t + 1.

Events come oldest first and padded on the right, so a causal mask alone keeps padding out of every
state that is used. Pure torch; takes vectors, knows nothing of items.

Shape letters: B users, T events, D width, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SequenceEncoder(nn.Module):
    """Encode a prefix and T events into T + 1 states; state t knows the prefix and t events.

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
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            CausalBlock(dim=dim, num_heads=num_heads, dropout=dropout) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, prefix_BD: Tensor, events_BTD: Tensor) -> Tensor:
        """Give the states (B, T + 1, D).

        Raises:
            AssertionError: more events than the encoder has positions for.
        """
        states_BTD = torch.cat([prefix_BD[:, None], events_BTD], dim=1)
        width = states_BTD.shape[1]
        assert width <= self.length + 1, f"{width - 1} events, at most {self.length} fit"
        states_BTD = self.dropout(states_BTD + self.positions.weight[:width])
        for block in self.blocks:
            states_BTD = block(states_BTD)
        return self.norm(states_BTD)  # type: ignore[no-any-return]  # a Tensor


class CausalBlock(nn.Module):
    """Causal self-attention and a feed-forward layer, both residual and pre-norm."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.p_dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states_BTD: Tensor) -> Tensor:
        """Give the next layer's states (B, T, D)."""
        batch, width, dim = states_BTD.shape
        joined = self.projection(self.attention_norm(states_BTD))
        query, key, value = (
            part.view(batch, width, self.num_heads, dim // self.num_heads).transpose(1, 2)
            for part in joined.chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.p_dropout if self.training else 0.0
        )
        mixed = mixed.transpose(1, 2).reshape(batch, width, dim)
        states_BTD = states_BTD + self.dropout(self.output(mixed))
        return states_BTD + self.feed_forward(states_BTD)  # type: ignore[no-any-return]  # a Tensor
