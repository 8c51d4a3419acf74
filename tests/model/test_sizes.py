import json

from mtrec.model.sizes import ModelSizes


def test_sizes_survive_json(sizes: ModelSizes) -> None:
    assert ModelSizes.from_json(json.loads(json.dumps(sizes.to_json()))) == sizes
