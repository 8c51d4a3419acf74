import numpy as np
import pytest

from mtrec.text.spec import TokenCounts


def _counts(total: list[int], unknown: list[int]) -> TokenCounts:
    return TokenCounts(np.array(total, np.int32), np.array(unknown, np.int32))


def test_the_unknown_fraction_is_over_tokens_not_over_texts() -> None:
    # 3 of 12 tokens; the mean of the texts' own shares would be (1/2 + 2/10) / 2 = .35
    assert _counts([2, 10], [1, 2]).unknown_fraction == pytest.approx(0.25)


def test_texts_without_tokens_have_nothing_unknown() -> None:
    assert _counts([0, 0], [0, 0]).unknown_fraction == 0.0
