"""Encoders: from texts to unit vectors, on one device, in one process.

A Hugging Face encoder or decoder, or the hashing encoder. Used by the actors of `text/embed.py` and
by the recommender for texts in requests. Never runs code that a model folder brings along, never
keeps what it encoded: that is `text/store.py`. torch and transformers are imported when a model is
loaded, so that describing an encoder stays cheap.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtrec.config import TextConfig
from mtrec.errors import ConfigError
from mtrec.text.hashing import HashingEncoder
from mtrec.text.models import describe_model, find_model, first_line, quiet_transformers
from mtrec.text.spec import EncoderSpec, TokenCounts

if TYPE_CHECKING:
    from torch import Tensor


class TextEncoder(Protocol):
    """What turns texts into vectors."""

    @property
    def spec(self) -> EncoderSpec:
        """Say which encoder this is."""

    @property
    def id(self) -> str:
        """Give the id under which its vectors are stored."""

    @property
    def name(self) -> str:
        """Give its name, as configured."""

    @property
    def dim(self) -> int:
        """Give the width of its vectors."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts as (N, dim) float32 rows of length 1; an empty text gives a zero row.

        A row does not depend on the other texts beyond rounding (1e-6 in float32).
        """

    def count_tokens(self, texts: Sequence[str]) -> TokenCounts:
        """Count the tokens of each text and the unknown ones among them."""

    def unknown_fraction(self, texts: Sequence[str]) -> float:
        """Give the share of all tokens that are unknown, 0 to 1; 0 if there are no tokens."""


# A CPU's caches like small batches (4,096 tokens took 1.6 times as long), a GPU large ones.
_BATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}


def build_encoder(
    config: TextConfig, *, device: str = "cpu", threads: int | None = None
) -> TextEncoder:
    """Load the configured encoder.

    Args:
        config: names the encoder, its pooling, precision and batches.
        device: `cpu` or `cuda`; `config.device` is for who places the encoder, not read here.
        threads: CPU threads of torch in this process; None leaves them as they are.

    Raises:
        ConfigError: there is no such model, or it cannot be read as one.
        ArtifactError: the bundled weights are not those that mtrec was made with.
    """
    if config.encoder == "hashing":
        return HashingEncoder(config.dimension)
    return HuggingFaceEncoder(
        find_model(config.encoder),
        describe_model(config, device=device),
        max_tokens=config.max_tokens,
        batch_tokens=config.batch_tokens or _BATCH_TOKENS[device.partition(":")[0]],
        device=device,
        threads=threads,
    )


def describe_encoder(config: TextConfig, *, device: str = "cpu") -> EncoderSpec:
    """Tell the id and the width of the configured encoder without loading it.

    Args:
        config: names the encoder, its pooling and its precision.
        device: where it will run, `cpu` or `cuda`; decides what precision `auto` is.

    Raises:
        ConfigError: there is no such model, or its folder lacks a file.
        ArtifactError: the bundled weights are not those that mtrec was made with.
    """
    if config.encoder == "hashing":
        return HashingEncoder(config.dimension).spec
    return describe_model(config, device=device)


def has_cuda() -> bool:
    """Tell whether torch finds a GPU that this process may use."""
    import torch

    return bool(torch.cuda.is_available())


class HuggingFaceEncoder:
    """A transformer encoder or decoder with pooling, from a folder on disk.

    Only the transformer and the pooling are applied; further layers that sentence-transformers may
    list in `modules.json` are not. Instructions that a model wants before a text ("query: ") belong
    into the templates.
    """

    def __init__(
        self,
        folder: Path,
        spec: EncoderSpec,
        *,
        max_tokens: int,
        batch_tokens: int,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Load the model.

        Args:
            folder: where config, tokenizer and weights lie.
            spec: what `describe_encoder` says about it.
            max_tokens: longer texts are cut, as they are at the model's own limit.
            batch_tokens: tokens of one forward pass, padding included.
            device: `cpu` or `cuda`.
            threads: CPU threads of torch in this process; None leaves them as they are.

        Raises:
            ConfigError: the folder does not hold a model and a tokenizer that load.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        self.spec = spec
        self._batch_tokens = batch_tokens
        self._device = torch.device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            with quiet_transformers():
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                model, loaded = AutoModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=getattr(torch, spec.precision),
                    output_loading_info=True,
                )
            # Those would be random numbers; the pooler of BERT-like models is not used.
            if absent := sorted(key for key in loaded["missing_keys"] if "pooler." not in key):
                raise ValueError(f"the weights lack {absent[0]}")
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            raise ConfigError(
                f'text.encoder "{spec.name}": {folder} does not load: {first_line(error)}\n'
                "expected a transformer with its tokenizer, as save_pretrained writes them"
            ) from error
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        model.config.use_cache = False
        self._model = model.to(self._device).eval()
        self._max_tokens = min(max_tokens, _token_limit(model.config, self._tokenizer))
        # Any id would do where the mask is 0; GPT-like tokenizers have no padding token.
        tokenizer = self._tokenizer
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad_id = next(value for value in candidates if value is not None)

    @property
    def id(self) -> str:
        """Give the id under which its vectors are stored."""
        return self.spec.id

    @property
    def name(self) -> str:
        """Give its name, as configured."""
        return self.spec.name

    @property
    def dim(self) -> int:
        """Give the width of its vectors."""
        return self.spec.dim

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts as (N, dim) float32 rows of length 1; an empty text gives a zero row."""
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        tokens = self._tokenize(texts)
        for batch in plan_batches([len(ids) for ids in tokens], self._batch_tokens):
            rows[batch] = self._encode_batch([tokens[row] for row in batch])
        return rows

    def count_tokens(self, texts: Sequence[str]) -> TokenCounts:
        """Count the tokens of each text and the unknown ones among them."""
        unknown_id = self._tokenizer.unk_token_id
        tokens = self._tokenize(texts, special=False)
        return TokenCounts(
            total=np.array([len(ids) for ids in tokens], dtype=np.int32),
            unknown=np.array([ids.count(unknown_id) for ids in tokens], dtype=np.int32),
        )

    def unknown_fraction(self, texts: Sequence[str]) -> float:
        """Give the share of all tokens that are unknown, 0 to 1; 0 if there are no tokens."""
        return self.count_tokens(texts).unknown_fraction

    def _tokenize(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Turn each text into token ids; an empty text into none, not even special ones."""
        if not texts:
            return []
        encoded: list[list[int]] = self._tokenizer(
            list(texts),
            add_special_tokens=special,
            truncation=True,
            max_length=self._max_tokens,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return [ids if text else [] for text, ids in zip(texts, encoded, strict=True)]

    def _encode_batch(self, tokens: list[list[int]]) -> NDArray[np.float32]:
        import torch

        # Always padded on the right, whatever the tokenizer prefers: there positions count from 0
        # and a causal model does not see the padding, so a row does not depend on its batch.
        length = max(len(ids) for ids in tokens)
        ids_BL = torch.full((len(tokens), length), self._pad_id, dtype=torch.long)
        mask_BL = torch.zeros((len(tokens), length), dtype=torch.long)
        for row, ids in enumerate(tokens):
            ids_BL[row, : len(ids)] = torch.tensor(ids)
            mask_BL[row, : len(ids)] = 1
        ids_BL, mask_BL = ids_BL.to(self._device), mask_BL.to(self._device)
        with torch.inference_mode():
            hidden_BLD = self._model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
            pooled_BD = pool(hidden_BLD.float(), mask_BL, self.spec.pooling)
            unit_BD = torch.nn.functional.normalize(pooled_BD, dim=-1)
        rows: NDArray[np.float32] = unit_BD.cpu().numpy()
        return rows


def pool(hidden_BLD: "Tensor", mask_BL: "Tensor", pooling: str) -> "Tensor":
    """Make one vector per text of its token vectors; padding may be on either side.

    Args:
        hidden_BLD: (B, L, D) token vectors.
        mask_BL: (B, L), 1 for a token and 0 for padding; each row has at least one token.
        pooling: `mean` over the tokens, the first token (`cls`), or the `last` one.

    Returns:
        (B, D) vectors, not normalised.
    """
    import torch

    if pooling == "mean":
        weight_BL1 = mask_BL.unsqueeze(-1).to(hidden_BLD.dtype)
        return (hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)
    length = mask_BL.shape[1]
    position_L = torch.arange(length, device=mask_BL.device)
    if pooling == "cls":
        index_B = position_L.masked_fill(mask_BL == 0, length).min(1).values
    else:
        index_B = position_L.masked_fill(mask_BL == 0, -1).max(1).values
    return hidden_BLD[torch.arange(len(index_B), device=mask_BL.device), index_B]


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Put texts of like length together, each batch within a budget of tokens with padding.

    >>> [batch.tolist() for batch in plan_batches([3, 9, 0, 3, 2], 9)]
    [[4, 0, 3], [1]]

    Args:
        lengths: tokens of each text; texts of length 0 are in no batch.
        batch_tokens: longest text times number of texts at most; a longer text is alone.

    Returns:
        for each batch the positions of its texts, shortest first.
    """
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    batches: list[NDArray[np.int64]] = []
    start = int(np.searchsorted(np.asarray(lengths)[order], 1)) if len(order) else 0
    for end in range(start + 1, len(order) + 1):
        is_full = end == len(order) or lengths[order[end]] * (end + 1 - start) > batch_tokens
        if is_full:
            batches.append(order[start:end])
            start = end
    return batches


def _token_limit(config: Any, tokenizer: Any) -> int:
    """Give the most tokens that a model takes."""
    limit = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
    # RoBERTa and its kin count positions from pad_token_id + 1.
    if "roberta" in config.model_type or config.model_type in ("camembert", "mpnet"):
        limit -= (config.pad_token_id or 0) + 1
    return int(min(limit, tokenizer.model_max_length))
