"""The text encoder that needs no language model: hashed words and character n-grams.

Deterministic, fast, any language; it sees shared words and parts of words, not meaning. For tests,
for machines without a model, and as the plain encoder that a language model must beat.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mtrec.storage import hash_values
from mtrec.text.spec import REVISION, EncoderSpec, TokenCounts


class HashingEncoder:
    """Words and character n-grams hashed with signs; any language, deterministic, no model.

    Feature hashing (Weinberger et al. 2009): a feature adds its sign times its weight to one of
    `dim` places. A word weighs 1 and so do its character n-grams together. Texts that share words
    or parts of words are near each other; meaning is not seen.
    """

    def __init__(self, dim: int) -> None:
        model_id = hash_values("hashing", REVISION, dim)[:32]
        self.spec = EncoderSpec(
            id=model_id,
            model_id=model_id,
            name="hashing",
            dim=dim,
            pooling="none",
            precision="float32",
        )

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
        rows = np.zeros((len(texts), self.dim), dtype=np.float64)
        for row, text in enumerate(texts):
            for word in _words(text):
                for feature, weight in _hashed_features(word):
                    rows[row, (feature >> 1) % self.dim] += weight if feature & 1 else -weight
            if text and not rows[row].any():  # all features met their opposites
                rows[row, _hash64(text) % self.dim] = 1.0
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return (rows / np.where(norms > 0.0, norms, 1.0)).astype(np.float32)

    def count_tokens(self, texts: Sequence[str]) -> TokenCounts:
        """Count the words of each text; none is unknown."""
        return TokenCounts(
            total=np.array([len(_words(text)) for text in texts], dtype=np.int32),
            unknown=np.zeros(len(texts), dtype=np.int32),
        )

    def unknown_fraction(self, texts: Sequence[str]) -> float:
        """Give 0: every word has a hash."""
        return self.count_tokens(texts).unknown_fraction


def _words(text: str) -> list[str]:
    """Split at everything but letters, marks and digits; a text of signs only is one word."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    # Marks belong to words: Hindi and Thai vowels are marks, which \w does not match.
    spaced = "".join(char if _is_word_character(char) else " " for char in normal)
    return spaced.split() or normal.split()


@lru_cache(maxsize=1 << 12)
def _is_word_character(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


@lru_cache(maxsize=1 << 16)
def _hashed_features(word: str) -> list[tuple[int, float]]:
    """Give (hash, weight) of a word and of its character n-grams."""
    # Scripts without capital letters are often written without spaces (Chinese, Japanese, Thai) or
    # put more into one sign; there, single signs and pairs carry the meaning.
    is_dense = any(unicodedata.category(char) == "Lo" for char in word)
    padded = word if is_dense else f"<{word}>"
    grams = [
        padded[start : start + size]
        for size in ((1, 2, 3) if is_dense else (3, 4))
        for start in range(len(padded) - size + 1)
    ]
    weight = 1.0 / len(grams) ** 0.5 if grams else 0.0
    return [(_hash64(f"w {word}"), 1.0), *((_hash64(f"g {gram}"), weight) for gram in grams)]


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
