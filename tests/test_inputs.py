from dataclasses import replace

import numpy as np
import pytest
from small_bundle import Small, item_ids

from mtrec.bundle import Bundle, EncoderInfo, load_bundle
from mtrec.catalogue import Catalogue
from mtrec.errors import ArtifactError, RequestError
from mtrec.inputs import RequestInputs
from mtrec.query import Event, Query


@pytest.fixture
def bundle(small: Small) -> Bundle:
    return load_bundle(small.path)


def inputs_of(bundle: Bundle) -> RequestInputs:
    catalogue = Catalogue(bundle.items, {}, has_integer_ids=False)
    return RequestInputs(bundle, catalogue, threads=None)


def event(item_id: str, **numbers: float) -> Event:
    values = {"rating": np.nan, "hour": np.nan, **numbers}
    return Event(item_id, item_id, np.nan, values, {"device": None})


def test_told_history_replaces_the_stored_one_and_what_was_seen(bundle: Bundle) -> None:
    known = inputs_of(bundle).gather(
        [Query("u1"), Query("u1", history=[event("item-04"), event("nothing")])]
    )
    assert np.diff(known.histories.offsets).tolist() == [4, 1]
    assert known.histories.item_index[-1] == 2 + item_ids(False).index("item-04")
    assert known.exclude[1].tolist() == [6]
    assert known.ignored == [[], ["nothing"]]
    assert known.users.is_known.all()


def test_missing_numbers_are_filled_as_in_the_dataset(bundle: Bundle) -> None:
    known = inputs_of(bundle).gather([Query(history=[event("item-01"), event("item-02", hour=3)])])
    assert known.histories.numbers["hour"].tolist() == [12.0, 3.0]
    assert np.isnan(known.histories.numbers["rating"]).all()  # labels stay missing


def test_excluded_and_seen_items_are_joined_once(bundle: Bundle) -> None:
    history = [event("item-04"), event("item-04")]
    asked = [
        Query(history=history, exclude=["item-04", "item-00", "what"]),
        Query(history=history, exclude=["item-00"], include_seen=True),
    ]
    assert [gone.tolist() for gone in inputs_of(bundle).gather(asked).exclude] == [[2, 6], [2]]


def test_context_that_is_not_told_is_absent(bundle: Bundle) -> None:
    context = inputs_of(bundle).context(
        [
            Query(context_numbers={"hour": 5.0}, context_categories={"device": "tv"}),
            Query(context_categories={"device": None}),
            Query(context_categories={"device": "fridge"}),
        ]
    )
    np.testing.assert_array_equal(context.numbers["hour"], [5.0, np.nan, np.nan])
    assert context.categories["device"].tolist() == [3, 0, 1]


def test_outliers_of_a_request_are_clipped_as_in_the_dataset(bundle: Bundle) -> None:
    fitted = bundle.transform.events["hour"]
    events = {**bundle.transform.events, "hour": replace(fitted, bounds=(1.0, 20.0))}
    clipping = replace(bundle, transform=replace(bundle.transform, events=events))
    query = Query(history=[event("item-01", hour=99)], context_numbers={"hour": -5.0})
    known = inputs_of(clipping).gather([query])
    assert known.histories.numbers["hour"].tolist() == [20.0]
    assert inputs_of(clipping).context([query]).numbers["hour"].tolist() == [1.0]


def test_text_needs_a_model_with_text(bundle: Bundle) -> None:
    bundle = replace(bundle, encoder=None)
    with pytest.raises(RequestError, match="trained without text") as caught:
        inputs_of(bundle).gather([Query(text="garden")])
    assert (caught.value.code, caught.value.field) == ("no_text", "text")


def test_another_encoder_than_the_bundles_is_refused(bundle: Bundle) -> None:
    bundle = replace(bundle, encoder=EncoderInfo("other", "hashing", 32, "other"))
    with pytest.raises(ArtifactError, match="not the one that bundle"):
        inputs_of(bundle).encode(["garden"])
