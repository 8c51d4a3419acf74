from hypothesis import given
from hypothesis import strategies as st

from mtrec.data.columns import Vocabulary

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(st.dictionaries(texts, st.integers(1, 5), max_size=8), st.integers(1, 3))
def test_vocabulary_positions_lead_back_to_the_values(counts, min_count):
    vocabulary = Vocabulary.fit(counts, min_count=min_count)
    known = sorted(value for value, count in counts.items() if count >= min_count)
    assert vocabulary.index(known).tolist() == list(range(2, 2 + len(known)))
    assert len(vocabulary) == 2 + len(known)
    rare = [value for value, count in counts.items() if count < min_count]
    assert set(vocabulary.index(rare).tolist()) <= {1}


def test_missing_is_padding_or_a_category_of_its_own():
    assert Vocabulary(("a",)).index(["a", None, "b"]).tolist() == [2, 0, 1]
    assert Vocabulary(("a",), has_missing=True).index(["a", None, "b"]).tolist() == [2, 3, 1]
    assert len(Vocabulary(("a",), has_missing=True)) == 4
