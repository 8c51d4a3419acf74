"""What a bundle knows of its users, for people to read: ids that begin alike, one user's history.

The page and whoever looks into an answer ask for it, through `Recommender`. It ranks nothing.
"""

import math
from typing import Any

from numpy.typing import NDArray

from mtrec.catalogue import Catalogue
from mtrec.userstore import UserStore


def tell_user(
    store: UserStore, catalogue: Catalogue, user_id: str, limit: int
) -> dict[str, Any] | None:
    """Give the latest events of a user, newest first; None: the user is not known.

    Args:
        store: the bundle's users.
        catalogue: names the items.
        user_id: as mtrec writes ids.
        limit: events at most.

    Returns:
        `events`, how many are stored, `seen`, how many items the user has met, and `history`:
        objects with `item_id`, `timestamp` where one is known (seconds since 1970) and the event's
        numbers where they are known.
    """
    place = store.find([user_id])
    if place[0] < 0:
        return None
    stored = store.histories(place)
    history = []
    for at in range(stored.num_events - 1, max(-1, stored.num_events - 1 - limit), -1):
        event: dict[str, Any] = {"item_id": catalogue.source_id(int(stored.item_index[at]))}
        told: dict[str, NDArray[Any]] = {"timestamp": stored.timestamp, **stored.numbers}
        for name, values in told.items():
            number = float(values[at])
            if math.isfinite(number):
                event[name] = number
        history.append(event)
    return {
        "events": int(stored.num_events),
        "seen": len(store.seen(place)[0]),
        "history": history,
    }
