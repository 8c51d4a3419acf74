"""From checked requests to arrays: what is known of the users who ask.

Joins what a request tells (history, text, context) with what the bundle's user store holds, in the
shapes that `Ranker` reads. It ranks nothing. The text encoder is loaded by the first text.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mtrec.bundle import Bundle
from mtrec.catalogue import NUM_SPECIAL, Catalogue
from mtrec.data.histories import Histories
from mtrec.errors import ArtifactError, RequestError
from mtrec.model.rows import PairContext
from mtrec.query import Event, Query
from mtrec.rerank import cosines
from mtrec.text.encoder import TextEncoder, build_encoder
from mtrec.userstore import UserRows

# A text stands for so many items that resemble it most, if there is no history.
_TEXT_NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class Gathered:
    """What is known of the users of B requests.

    Attributes:
        histories: their events.
        users: their features and texts.
        exclude: B arrays of positions that must not be listed.
        ignored: for each the history items that the catalogue lacks, as the request wrote them.
        likeness: (B, N) float32, cosines of wishes in words with the items; None: no wishes.
    """

    histories: Histories
    users: UserRows
    exclude: list[NDArray[np.int64]]
    ignored: list[list[str | int]]
    likeness: sparse.csr_array | None = None


class RequestInputs:
    """Turn checked requests into arrays, with a bundle's users, items and text encoder."""

    def __init__(
        self, bundle: Bundle, catalogue: Catalogue, *, device: str = "cpu", threads: int | None
    ) -> None:
        self._bundle = bundle
        self._catalogue = catalogue
        self._device, self._threads = device, threads
        self._encoder: TextEncoder | None = None
        self._encoder_lock = threading.Lock()

    def gather(self, queries: Sequence[Query]) -> Gathered:
        """Bring together what is known of the users of some requests.

        Raises:
            RequestError: a text is given and the model has none.
        """
        store, catalogue = self._bundle.users, self._catalogue
        found = store.find([query.user_id or "" for query in queries])
        is_told = np.array([query.history is not None for query in queries], bool)
        # A history in the request replaces the stored one, what was seen included.
        stored = store.histories(np.where(is_told, -1, found))
        seen = store.seen(np.where(is_told, -1, found))
        parts, exclude, ignored = [], [], []
        for at, query in enumerate(queries):
            told = query.history or []
            events = [event for event in told if event.item_id in catalogue]
            ignored.append([event.given_id for event in told if event.item_id not in catalogue])
            part = stored.rows([at]) if query.history is None else self._history(query, events)
            parts.append(part)
            gone = [catalogue.position(i) for i in query.exclude if i in catalogue]
            if not query.include_seen:
                gone += seen[at].tolist() if query.history is None else part.item_index.tolist()
            exclude.append(np.unique(np.array(gone, np.int64)))
        users, likeness = self._with_texts(store.rows(found), queries, parts)
        return Gathered(_concatenate(parts), users, exclude, ignored, likeness)

    def context(self, queries: Sequence[Query]) -> PairContext:
        """Give the contexts of B requests; what one does not tell is absent."""
        sizes, transform = self._bundle.sizes, self._bundle.transform
        categories = {}
        for name in sizes.context_categories:
            given = [query.context_categories.get(name) for query in queries]
            codes = transform.event_category_index(name, given)
            categories[name] = np.where([value is None for value in given], np.int32(0), codes)
        numbers = {}
        for name in sizes.context_numbers:
            told = np.array([q.context_numbers.get(name, np.nan) for q in queries], np.float64)
            low, high = transform.events[name].bounds or (-np.inf, np.inf)
            numbers[name] = np.clip(told, low, high).astype(np.float32)
        return PairContext(numbers, categories)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts with the encoder of the bundle: (B, W) unit rows.

        Raises:
            RequestError: the model was trained without text.
            ArtifactError: the encoder on this machine is not the bundle's.
        """
        info = self._bundle.encoder
        if info is None:
            raise RequestError(
                "text: this model was trained without text; give user_id or history",
                code="no_text",
                field="text",
            )
        with self._encoder_lock:
            if self._encoder is None:
                encoder = build_encoder(
                    self._bundle.config.text, device=self._device, threads=self._threads
                )
                if not info.is_made_by(encoder.spec):
                    raise ArtifactError(
                        f'the text encoder "{encoder.name}" here is not the one that bundle '
                        f"{self._bundle.version} was trained with\n"
                        "install the same model, or train again"
                    )
                self._encoder = encoder
            return self._encoder.encode(texts)

    def item_text(self) -> NDArray[np.floating]:
        """Give the text vectors of the catalogue: (N, W).

        Raises:
            RequestError: the items have no text.
        """
        if self._bundle.vectors.text is None:
            raise RequestError(
                "text: this model's items have no text; give an item or a history",
                code="no_text",
                field="text",
            )
        return self._bundle.vectors.text

    def _history(self, query: Query, events: Sequence[Event]) -> Histories:
        transform = self._bundle.transform

        def treated(column: str) -> NDArray[np.float32]:
            """Treat outliers and missing values as `prepare` does."""
            return transform.treat_event_numbers(column, [e.numbers[column] for e in events])

        return Histories(
            user_ids=np.array([query.user_id or ""], object),
            offsets=np.array([0, len(events)], np.int64),
            item_index=np.array([self._catalogue.position(e.item_id) for e in events], np.int32),
            timestamp=np.array([e.timestamp for e in events], np.float64),
            split=np.zeros(len(events), np.int8),
            numbers={name: treated(name) for name in transform.event_scaling},
            categories={
                name: transform.event_category_index(name, [e.categories[name] for e in events])
                for name in transform.event_categories
            },
        )

    def _bare_event(self, position: int) -> Event:
        """Make an event of which nothing but the item is known."""
        transform = self._bundle.transform
        return Event(
            item_id=self._catalogue.item_id(position),
            given_id="",
            timestamp=np.nan,
            numbers=dict.fromkeys(transform.event_scaling, np.nan),
            categories=dict.fromkeys(transform.event_categories),
        )

    def _with_texts(
        self, users: UserRows, queries: Sequence[Query], parts: list[Histories]
    ) -> tuple[UserRows, sparse.csr_array | None]:
        """Put the texts of requests to what is known; give the users and the wishes' likeness.

        Where users were told by a template in training, a text takes the place of the stored one.
        Elsewhere it is a wish in words for items that resemble it, and the user's text if none is
        stored. `parts` then gets a history of the items that resemble it
        most, unless there is a history already.
        """
        rows = [at for at, query in enumerate(queries) if query.text is not None]
        if not rows:
            return users, None
        config, width = self._bundle.config.text, self._bundle.sizes.users.text_width
        vectors = self.encode([queries[at].text or "" for at in rows])
        # The user store's precision: a stored text and the same text in a request shall give one
        # answer.
        stored = vectors.astype(np.float16).astype(np.float32)
        if width and config.user_template is not None:
            return users.with_text(rows, stored), None
        if width:
            new = np.flatnonzero(users.has_text[rows] == 0.0)
            users = users.with_text([rows[at] for at in new], stored[new])
        if self._bundle.vectors.text is None:
            return users, None
        found = np.zeros((len(queries), len(self._bundle.vectors.text)), np.float32)
        for at, vector in zip(rows, vectors, strict=True):
            likeness = cosines(self.item_text(), vector)
            likeness[:NUM_SPECIAL] = np.nan
            found[at] = np.nan_to_num(likeness)
            if parts[at].num_events == 0:
                order = np.lexsort(
                    (self._catalogue.tie_rank, -np.nan_to_num(likeness, nan=-np.inf))
                )
                order = order[:_TEXT_NEIGHBOURS]
                nearest = order[np.isfinite(likeness[order])][::-1]
                parts[at] = self._history(queries[at], [self._bare_event(p) for p in nearest])
        return users, sparse.csr_array(found)


def _concatenate(parts: Sequence[Histories]) -> Histories:
    """Put the users of several histories with the same columns one after another."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Histories(
        user_ids=np.concatenate([part.user_ids for part in parts]),
        offsets=offsets,
        item_index=np.concatenate([part.item_index for part in parts]),
        timestamp=np.concatenate([part.timestamp for part in parts]),
        split=np.concatenate([part.split for part in parts]),
        numbers={
            name: np.concatenate([part.numbers[name] for part in parts])
            for name in parts[0].numbers
        },
        categories={
            name: np.concatenate([part.categories[name] for part in parts])
            for name in parts[0].categories
        },
    )
