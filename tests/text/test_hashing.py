"""The hashing encoder: determinism, likeness by words and parts of words, any language."""

import subprocess
import sys

import numpy as np
import pytest

from mtrec.config import TextConfig
from mtrec.text.encoder import build_encoder, describe_encoder
from mtrec.text.hashing import HashingEncoder


def test_vectors_are_the_same_in_another_process() -> None:
    program = (
        "from mtrec.text.hashing import HashingEncoder\n"
        "print(HashingEncoder(16).encode(['Toy Story', '科幻'])[:, :4].tolist())"
    )

    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    here = HashingEncoder(16).encode(["Toy Story", "科幻"])[:, :4].tolist()
    assert other.stdout.strip() == str(here)


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("space adventure with robots", "robot adventures in space", "a quiet love story"),
        ("我喜欢科幻电影", "科幻电影", "浪漫爱情故事"),
        ("अच्छी फिल्म", "अच्छी फिल्में", "बुरा दिन"),
        ("Ärzte über Straßen", "ÄRZTE ÜBER STRASSEN", "Brot und Salz"),
    ],
)
def test_texts_with_common_words_or_parts_are_nearer(text: str, near: str, far: str) -> None:
    a, b, c = HashingEncoder(512).encode([text, near, far])

    assert a @ b > a @ c + 0.2


def test_rows_have_length_one_whatever_the_text() -> None:
    texts = ["a", "!?", "😀", "x" * 10_000, " ", "\n\t", "مرحبا"]

    norms = np.linalg.norm(HashingEncoder(8).encode(texts), axis=1)

    np.testing.assert_allclose(norms, 1.0, atol=1e-6)


def test_an_empty_text_gives_a_zero_row() -> None:
    assert not HashingEncoder(8).encode([""]).any()
    assert HashingEncoder(8).encode([]).shape == (0, 8)


def test_a_single_word_is_its_hashed_features() -> None:
    from mtrec.text.hashing import _hash64

    # "ab" padded is "<ab>"; its n-grams together weigh as much as the word.
    expected = np.zeros(32)
    weights = {"w ab": 1.0, "g <ab": 3**-0.5, "g ab>": 3**-0.5, "g <ab>": 3**-0.5}
    for feature, weight in weights.items():
        value = _hash64(feature)
        expected[(value >> 1) % 32] += weight if value & 1 else -weight

    found = HashingEncoder(32).encode(["ab"])[0]

    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_it_is_built_from_the_configuration_with_its_dimension() -> None:
    config = TextConfig(encoder="hashing", dimension=24)

    encoder = build_encoder(config, device="cpu", threads=1)

    assert encoder.encode(["x"]).shape == (1, 24)
    assert (encoder.name, encoder.dim) == ("hashing", 24)
    assert encoder.id == describe_encoder(config).id
    assert encoder.id != HashingEncoder(32).id
    assert encoder.unknown_fraction(["abc 科幻"]) == 0.0
