"""The diversity dial: what lists gain in diversity and lose in accuracy at several settings.

`evaluate` has it measured on held-out events; the report draws one against the other. It shows the
choice that a request or batch scoring has and makes none. No files, no Ray.
"""

from collections.abc import Sequence

import numpy as np

from mtrec.baselines import relevant_items
from mtrec.comparison import Draws, ItemFacts, Tree, compare_lists
from mtrec.data.histories import Histories
from mtrec.recommender import Recommender

_USERS_PER_BLOCK = 256


def measure_dial(
    recommender: Recommender,
    histories: Histories,
    split: str,
    items: ItemFacts,
    *,
    settings: Sequence[float],
    k: int,
    num_users: int,
    draws: Draws,
) -> Tree:
    """Measure lists at several settings of `diversity` on the same users.

    Args:
        recommender: what is asked, from the events before the split.
        histories: all events of U users; those with a held-out event are asked.
        split: what is held out.
        items: what metrics need of the items.
        settings: values of the dial, 0 to 1.
        k: length of the lists.
        num_users: how many users are drawn at most.
        draws: resamples behind the intervals; their seed decides also which users are drawn.

    Returns:
        `split`, `k`; `users` that were asked, `of` how many; `points`, for each setting `dial`,
        and `ndcg@<k>` and `diversity@<k>` as in the other tables, each with its
        `<metric>_interval` (95 %, bootstrap over users). What is undefined is left out.
    """
    num_items = len(items.train_count)
    asked = np.flatnonzero(relevant_items(histories, split, num_items).count)
    total = len(asked)
    if total > num_users:
        rng = np.random.default_rng(draws.seed)
        asked = np.sort(rng.choice(asked, num_users, replace=False))
    histories = histories.rows(asked)
    known = histories.before(split)
    lists = {str(at): np.zeros((len(asked), k), np.int32) for at in range(len(settings))}
    for start in range(0, len(asked), _USERS_PER_BLOCK):
        users = np.arange(start, min(start + _USERS_PER_BLOCK, len(asked)))
        found = recommender.diversified(known.rows(users), k=k, diversities=settings)
        for at, part in enumerate(found):
            lists[str(at)][users] = np.maximum(part, 0)
    relevance = relevant_items(histories, split, num_items)
    measured = compare_lists(lists, relevance, items, draws)
    points = []
    for at, dial in enumerate(settings):
        point: Tree = {"dial": dial}
        for metric in (f"ndcg@{k}", f"diversity@{k}"):
            figure = measured[str(at)].get(metric)
            if figure is not None and np.isfinite(figure.value):
                interval = figure.interval()
                point[metric] = interval.value
                point[f"{metric}_interval"] = [interval.low, interval.high]
        points.append(point)
    return {"split": split, "k": k, "users": len(asked), "of": total, "points": points}
