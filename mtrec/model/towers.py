"""Item and user towers: text, features and collaborative rows become vectors of one width.

An item is its content (what is known of it) plus a collaborative row (what behaviour taught).
Rows are dropped whole in training, so that content learns to stand alone (DropoutNet, Volkovs et
al. 2017); an item without training events has no row at all. Pure torch; knows nothing of files.

Shape letters: N items, B users, D embedding width, W text width, K whitened width, F numbers,
M values of a multi-valued category.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

# Eigenvalues below this share of the largest are noise, not directions of meaning.
_EIGENVALUE_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class FeatureInputs:
    """Features of R rows, items or users, as the towers read them.

    Attributes:
        numbers: (R, F) float32, scaled and finite.
        categories: column -> (R,) int64; 0 absent, 1 unknown.
        multi: column -> (R, M) int64, padded with 0.
        text: (R, W) float32, vectors of the text encoder; zeros where there is no text. (R, K) once
            they are whitened.
        has_text: (R,) float32, 1 where there is a text.
        is_whitened: whether a tower has whitened the texts; see `FeatureTower.whiten`.
    """

    numbers: Tensor
    categories: Mapping[str, Tensor]
    multi: Mapping[str, Tensor]
    text: Tensor
    has_text: Tensor
    is_whitened: bool = False

    def rows(self, index: Tensor) -> "FeatureInputs":
        """Give the rows at `index` (R',) int64."""
        return FeatureInputs(
            self.numbers[index],
            {name: values[index] for name, values in self.categories.items()},
            {name: values[index] for name, values in self.multi.items()},
            self.text[index],
            self.has_text[index],
            self.is_whitened,
        )

    def to(self, device: torch.device | str) -> "FeatureInputs":
        """Move every tensor to a device."""
        return FeatureInputs(
            self.numbers.to(device),
            {name: values.to(device) for name, values in self.categories.items()},
            {name: values.to(device) for name, values in self.multi.items()},
            self.text.to(device),
            self.has_text.to(device),
            self.is_whitened,
        )


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """What the model knows of N items; rows 0 (padding) and 1 (unknown) are zeros.

    Attributes:
        content: (N, D) float32.
        collaborative: (N, D) float32, zeros for items without training events.
        bias: (N,) float32.
    """

    content: Tensor
    collaborative: Tensor
    bias: Tensor

    @property
    def fused(self) -> Tensor:
        """The sum of both parts, (N, D)."""
        return self.content + self.collaborative

    def at(self, item: Tensor) -> Tensor:
        """Give the sum of both parts for items of any shape (...): (..., D).

        Without adding up the whole catalogue first, which costs a request more than its encoding.
        """
        return self.content[item] + self.collaborative[item]

    def to(self, device: torch.device | str) -> "ItemVectors":
        """Move every tensor to a device."""
        return ItemVectors(*(getattr(self, part.name).to(device) for part in fields(self)))


class FeatureTower(nn.Module):
    """Map numbers, categories and a text vector to one vector: (R, D).

    The text is centred and whitened with statistics of the training rows, so that the few
    directions that all sentences share do not drown the others.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(
        self,
        *,
        dim: int,
        numbers: int,
        categories: Mapping[str, int],
        multi: Mapping[str, int],
        text_width: int,
        text_dim: int,
    ) -> None:
        super().__init__()
        whitened = min(text_width, text_dim)
        self.dim = dim
        self.numbers = nn.Linear(numbers, dim, bias=False) if numbers else None
        self.categories = nn.ModuleDict(
            {name: nn.Embedding(size, dim, padding_idx=0) for name, size in categories.items()}
        )
        self.multi = nn.ModuleDict(
            {
                name: nn.EmbeddingBag(size, dim, mode="mean", padding_idx=0)
                for name, size in multi.items()
            }
        )
        self.register_buffer("mean", torch.zeros(text_width))
        self.register_buffer("whitening", torch.eye(text_width)[:, :whitened].contiguous())
        self.text = (
            nn.Sequential(
                nn.LayerNorm(whitened),
                nn.Linear(whitened, 2 * dim),
                nn.GELU(),
                nn.Linear(2 * dim, dim),
            )
            if text_width
            else None
        )
        for table in (*self.categories.values(), *self.multi.values()):
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]  # tables have it
            with torch.no_grad():
                table.weight[0].zero_()  # type: ignore[index]  # tables have it

    def fit_whitening(self, text_RW: Tensor) -> None:
        """Fit the whitening on the text vectors of training rows (R, W); PCA, unit variance."""
        if self.text is None or len(text_RW) < 2:
            return
        self.mean.copy_(text_RW.mean(0))
        self.whitening.copy_(whitening_matrix(text_RW, self.whitening.shape[1]))

    def whiten(self, inputs: FeatureInputs) -> FeatureInputs:
        """Give the same inputs with whitened texts: for who passes the same rows many times."""
        if self.text is None or inputs.is_whitened:
            return inputs
        return replace(inputs, text=(inputs.text - self.mean) @ self.whitening, is_whitened=True)

    def forward(self, inputs: FeatureInputs) -> Tensor:
        """Map rows to vectors (R, D); rows without any input give what zeros give."""
        parts = []
        if self.numbers is not None:
            parts.append(self.numbers(inputs.numbers))
        parts += [table(inputs.categories[name]) for name, table in self.categories.items()]
        parts += [table(inputs.multi[name]) for name, table in self.multi.items()]
        if self.text is not None:
            parts.append(self.text(self.whiten(inputs).text) * inputs.has_text[:, None])
        if not parts:
            return inputs.numbers.new_zeros(len(inputs.numbers), self.dim)
        total: Tensor = torch.stack(parts).sum(0)
        return total


def whitening_matrix(text_RW: Tensor, dim: int) -> Tensor:
    """Give the (W, dim) matrix that maps centred rows to `dim` uncorrelated unit-variance numbers.

    PCA whitening: eigenvectors of the covariance, each divided by the root of its eigenvalue;
    directions with no variance become zero columns. Computed in float64.
    """
    centred = (text_RW - text_RW.mean(0)).double()
    covariance = centred.T @ centred / max(1, len(centred) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:dim], vectors.flip(1)[:, :dim]
    alive = values > _EIGENVALUE_FLOOR * values[0].clamp(min=1e-12)
    scale = torch.where(alive, values.clamp(min=1e-12).rsqrt(), torch.zeros_like(values))
    # eigh leaves the sign open; a fixed sign makes runs on different machines comparable.
    signs = torch.sign(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)))
    whitening: Tensor = (vectors * signs * scale).to(text_RW.dtype)
    return whitening


class ItemTower(nn.Module):
    """Item content, collaborative rows and biases: inputs of N items -> `ItemVectors`."""

    def __init__(self, content: FeatureTower, *, num_items: int, dim: int) -> None:
        super().__init__()
        self.content = content
        self.collaborative = nn.Embedding(num_items, dim)
        self.bias = nn.Embedding(num_items, 1)
        nn.init.normal_(self.collaborative.weight, std=0.02)
        nn.init.zeros_(self.bias.weight)

    def forward(
        self, items: FeatureInputs, trained_N: Tensor, used: Tensor | None = None
    ) -> ItemVectors:
        """Give the vectors of all items.

        Args:
            items: inputs of the N items, in the order of the vocabulary.
            trained_N: (N,) float32, m_i: 1 where the collaborative row and the bias count, 0 for
                items without training events or whose row is dropped in this step.
            used: int64, distinct items beyond which nobody reads content: it is zeros there.
        """
        known = torch.ones_like(trained_N)
        known[:2] = 0.0  # padding and unknown
        mask = (trained_N * known)[:, None]
        if used is None:
            content = self.content(items)
        else:
            content = trained_N.new_zeros(len(trained_N), self.content.dim)
            content = content.index_copy(0, used, self.content(items.rows(used)))
        return ItemVectors(
            content=content * known[:, None],
            collaborative=self.collaborative.weight * mask,
            bias=(self.bias.weight * mask)[:, 0],
        )


def drop_rows(trained_N: Tensor, p_drop: float, generator: torch.Generator | None) -> Tensor:
    """Hide each collaborative row with probability `p_drop`: m_i -> 0 for this step."""
    if p_drop == 0.0:
        return trained_N
    draw = torch.rand(trained_N.shape, generator=generator, device="cpu").to(trained_N.device)
    return trained_N * (draw >= p_drop)
