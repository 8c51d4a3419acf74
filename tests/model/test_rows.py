import numpy as np
import pytest
from small_bundle import Small

from mtrec.bundle import Bundle, load_bundle
from mtrec.model.ranking import Context
from mtrec.model.rows import PairContext, context_inputs, user_inputs


@pytest.fixture(scope="module")
def bundle(small: Small) -> Bundle:
    return load_bundle(small.path)


def context_rows(bundle: Bundle, context: PairContext, part: slice) -> Context:
    return context_inputs(context, part, bundle.sizes, bundle.transform.event_scaling, "cpu")


def test_context_of_pairs_is_scaled_as_in_training(bundle: Bundle) -> None:
    context = PairContext({"hour": np.array([18.0, np.nan])}, {"device": np.array([2, 0])})
    inputs = context_rows(bundle, context, slice(0, 2))
    assert inputs.numbers.tolist() == [[1.0], [0.0]]  # (18 - 12) / 6
    assert inputs.present.tolist() == [[1.0], [0.0]]
    assert inputs.categories["device"].tolist() == [2, 0]


def test_a_part_of_a_context_is_its_rows(bundle: Bundle) -> None:
    context = PairContext({"hour": np.array([18.0, 12.0])}, {"device": np.array([2, 1])})
    inputs = context_rows(bundle, context, slice(1, 2))
    assert inputs.numbers.tolist() == [[0.0]]
    assert inputs.categories["device"].tolist() == [1]


def test_no_context_is_nothing_known(bundle: Bundle) -> None:
    inputs = context_rows(bundle, PairContext(), slice(0, 3))
    assert not inputs.numbers.any() and not inputs.present.any()
    assert inputs.categories["device"].tolist() == [0, 0, 0]


def test_users_are_given_in_the_order_asked(small: Small, bundle: Bundle) -> None:
    users = bundle.users.rows(bundle.users.find(small.histories.user_ids.tolist()))
    rows = np.array([3, 0])
    inputs = user_inputs(users, rows, bundle.sizes, "cpu")
    np.testing.assert_array_equal(inputs.numbers.numpy(), users.features.numbers[rows])
    np.testing.assert_array_equal(inputs.has_text.numpy(), users.has_text[rows])
    for name, values in users.features.categories.items():
        np.testing.assert_array_equal(inputs.categories[name].numpy(), values[rows])
