import json

import numpy as np
import pyarrow as pa
import pytest

from mtrec.configfile import parse_config
from mtrec.data.columns import ColumnTransform, Vocabulary
from mtrec.data.features import FeatureTransform, fit_columns, fit_transform, summarise
from mtrec.data.sources import planted


def columns(**kinds):
    tree = {
        "data": {
            "interactions": {"path": "x"},
            "items": {"path": "y", "columns": kinds},
        },
        "tasks": [{"name": "retrieval", "kind": "retrieval"}],
    }
    return parse_config(tree).data.items.columns


def fit_items(train, **kinds):
    configured = columns(**kinds)
    return FeatureTransform(items=fit_columns(configured, summarise(train, configured)))


def test_numbers_are_standardised_with_the_training_rows_mean_and_deviation():
    transform = fit_items(pa.table({"price": [1.0, 3.0]}), price={"kind": "number"})
    # Mean 2, population deviation 1; a missing price becomes the mean.
    features = transform.item_features(pa.table({"price": [5.0, None]}))
    assert features.numbers.tolist() == [[3.0], [0.0]]
    assert features.numbers.dtype == np.float32


def test_numbers_are_scaled_to_the_training_rows_range():
    kind = {"kind": "number", "scale": "minmax"}
    transform = fit_items(pa.table({"price": [10.0, 30.0]}), price=kind)
    assert transform.item_features(pa.table({"price": [20.0, 50.0]})).numbers.tolist() == [
        [0.5],
        [2.0],
    ]


def test_outliers_are_clipped_to_the_bounds_that_were_fitted():
    configured = columns(price={"kind": "number", "scale": "none"})
    train = pa.table({"price": [10.0, 30.0]})
    fitted = fit_columns(configured, summarise(train, configured), {"price": (5.0, 40.0)})
    transform = FeatureTransform(items=fitted, events=fitted)
    told = pa.table({"price": [-1.0, 20.0, 41.0, None]})
    assert transform.item_features(told).numbers[:, 0].tolist() == [5.0, 20.0, 40.0, 20.0]
    assert transform.fill_events(told)["price"].to_pylist() == [5.0, 20.0, 40.0, 20.0]
    assert transform.treat_event_numbers("price", [90.0, np.nan]).tolist() == [40.0, 20.0]
    assert FeatureTransform.from_json(json.loads(json.dumps(transform.to_json()))) == transform


def test_the_scale_is_that_of_the_filled_column():
    kind = {"kind": "number", "missing": "constant", "constant": 10.0, "scale": "minmax"}
    transform = fit_items(pa.table({"price": [0.0, 5.0, None]}), price=kind)
    assert transform.item_features(pa.table({"price": [5.0, None]})).numbers.tolist() == [
        [0.5],
        [1.0],
    ]


@pytest.mark.parametrize("scale", ["standard", "minmax", "none"])
def test_a_constant_column_stays_finite(scale):
    kind = {"kind": "number", "scale": scale}
    transform = fit_items(pa.table({"price": [7.0, 7.0]}), price=kind)
    wide = pa.table({"price": [7.0, None, 1e308]})
    assert np.isfinite(transform.item_features(wide).numbers).all()


def test_no_training_rows_at_all_still_fit():
    empty = pa.table({"price": pa.array([], pa.float64()), "kind": pa.array([], pa.string())})
    transform = fit_items(empty, price={"kind": "number"}, kind={"kind": "category"})
    features = transform.item_features(pa.table({"price": [4.0], "kind": ["a"]}))
    assert features.numbers.tolist() == [[4.0]]
    assert features.categories["kind"].tolist() == [1]


def test_several_categories_are_padded():
    rows = pa.table({"genres": [["b", "a"], [], ["a"]]})
    transform = fit_items(rows, genres={"kind": "categories"})
    unseen = pa.table({"genres": [["a", "new", "b"], None]})
    assert transform.item_features(unseen).multi["genres"].tolist() == [[2, 1, 3], [0, 0, 0]]
    assert transform.item_sizes.multi == {"genres": 4}


def test_a_missing_category_seen_in_training_has_its_own_position():
    rows = pa.table({"kind": ["a", None]})
    transform = fit_items(rows, kind={"kind": "category"})
    assert transform.item_features(rows).categories["kind"].tolist() == [2, 3]
    assert transform.item_sizes.categories == {"kind": 4}


def test_a_filled_category_counts_towards_its_frequency():
    kind = {"kind": "category", "missing": "constant", "constant": "z", "min_count": 2}
    transform = fit_items(pa.table({"kind": [None, None, "a"]}), kind=kind)
    found = transform.item_features(pa.table({"kind": [None, "a"]})).categories["kind"]
    assert found.tolist() == [2, 1]


def test_absent_columns_count_as_empty():
    transform = fit_items(
        pa.table({"price": [1.0, 3.0], "genres": [["a"], ["b"]]}),
        price={"kind": "number"},
        genres={"kind": "categories"},
    )
    features = transform.item_features(pa.table({"item_id": ["x"]}))
    assert features.numbers.tolist() == [[0.0]]
    assert features.multi["genres"].tolist() == [[0]]


def test_event_categories_are_never_padding():
    transform = FeatureTransform(
        events={"device": ColumnTransform("category", vocabulary=Vocabulary(("tv",)))}
    )
    found = transform.event_category_index("device", ["tv", None, "watch"])
    assert found.tolist() == [2, 1, 1]


def full_transform(tmp_path):
    config = parse_config(planted(tmp_path))
    data = config.data
    return fit_transform(
        config,
        items=summarise(
            pa.table({"title": ["a"], "genres": [["x", "y"]], "price": [0.1 + 0.2]}),
            data.items.columns,
        ),
        users=summarise(pa.table({"age": [1 / 3], "gender": ["F"]}), data.users.columns),
        events=summarise(pa.table({"rating": [1.0, 4.0]}), data.interactions.columns),
        id_types={"user_id": "string", "item_id": "int64"},
    )


def test_json_gives_back_an_equal_transform(tmp_path):
    transform = full_transform(tmp_path)
    tree = json.loads(json.dumps(transform.to_json()))
    assert FeatureTransform.from_json(tree) == transform
    assert FeatureTransform.from_json(FeatureTransform().to_json()) == FeatureTransform()


def test_sizes_and_scaling_follow_the_configurations_order(tmp_path):
    transform = full_transform(tmp_path)
    assert transform.item_sizes.numbers == 1
    assert transform.item_sizes.multi == {"genres": 4}
    assert transform.user_sizes.categories == {"gender": 3}
    # Ratings 1 and 4: mean 2.5, deviation 1.5.
    assert transform.event_scaling == {"rating": (2.5, 1.5)}
