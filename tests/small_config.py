"""A small valid configuration that tests of the schema and of its file share."""

from typing import Any


def tree(**sections: Any) -> dict[str, Any]:
    """Give a small valid configuration as a tree, with some sections replaced."""
    return {
        "data": {
            "interactions": {
                "path": "ratings.csv",
                "timestamp": "time",
                "columns": {"rating": {"kind": "number", "min": 1, "max": 5}},
            },
            "items": {
                "path": "items.csv",
                "columns": {"title": {"kind": "text"}, "genres": {"kind": "categories"}},
            },
        },
        "tasks": [
            {"name": "next", "kind": "retrieval"},
            {"name": "rating", "kind": "regression", "label": "rating", "min": 1, "max": 5},
            {"name": "like", "kind": "binary", "label": "rating >= 4"},
        ],
        **sections,
    }
