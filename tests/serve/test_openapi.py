import pytest
from fastapi import FastAPI

from mtrec.serve import openapi, schemas

EXAMPLES = [
    (name, example, body["value"])
    for name, route in vars(openapi).items()
    if name.isupper() and isinstance(route, dict) and "openapi_extra" in route
    for example, body in route["openapi_extra"]
    .get("requestBody", {})
    .get("content", {})
    .get("application/json", {})
    .get("examples", {})
    .items()
]


def _document() -> dict:
    app = FastAPI()

    @app.post("/v1/recommend", **openapi.RECOMMEND)
    def recommend() -> None: ...

    @app.get("/healthz", **openapi.HEALTH)
    def health() -> None: ...

    return openapi.describe(app)


def test_there_are_examples_to_check() -> None:
    assert {name for name, _, _ in EXAMPLES} >= {"RECOMMEND", "BATCH", "SCORE", "SIMILAR"}


@pytest.mark.parametrize(("name", "example", "body"), EXAMPLES)
def test_an_example_names_only_fields_of_its_shape(name: str, example: str, body: dict) -> None:
    shape = {
        "RECOMMEND": "RecommendRequest",
        "BATCH": "BatchRequest",
        "SCORE": "ScoreRequest",
        "SIMILAR": "SimilarRequest",
        "FRIENDS": "FriendsRequest",
    }[name]
    assert set(body) <= set(schemas.components()[shape]["properties"]), example


def test_open_routes_want_no_key_and_the_others_say_what_a_refusal_is() -> None:
    paths = _document()["paths"]
    assert paths["/healthz"]["get"]["security"] == []
    assert "security" not in paths["/v1/recommend"]["post"]
    assert set(paths["/v1/recommend"]["post"]["responses"]) >= {"401", "413", "422", "503"}


def test_every_reference_leads_to_a_shape() -> None:
    document = _document()

    def references(node: object) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*(references(value) for value in node.values()))
        if isinstance(node, list):
            return set().union(*(references(value) for value in node))
        return set()

    names = {found.rpartition("/")[2] for found in references(document)}
    assert names
    assert names <= set(document["components"]["schemas"])
