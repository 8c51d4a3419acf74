"""New versions of a bundle without training: items that come in, users who go.

`mtrec bundle add-items` and `mtrec bundle remove-users`. A version is never changed: what it holds
is written anew beside it, and `CURRENT` then names the new one, which servers that follow it take.
The weights stay: new items are known by their content alone, as an item without events is after
training; of users who go, nothing but their share in averages and weights is left.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from mtrec import artifacts, storage
from mtrec.bundle import Bundle, load_bundle
from mtrec.catalogue import NUM_SPECIAL
from mtrec.data import contract, readers
from mtrec.data.columns import UNKNOWN
from mtrec.data.contract import PLACE, REASON, ROW
from mtrec.data.dataset import read_table
from mtrec.dataconfig import ItemsTable
from mtrec.errors import ArtifactError, DataError
from mtrec.localcopy import local_files
from mtrec.model.loading import feature_inputs
from mtrec.runlock import hold_folder
from mtrec.text.encoder import build_encoder
from mtrec.text.templates import render_rows
from mtrec.userstore import copy_without
from mtrec.versions import KIND, find_bundle, write_version

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Revised:
    """What became of a bundle.

    Attributes:
        version: the new one's name; None: there was nothing to do.
        changed: items added or users taken out.
        left: ids that were asked for and changed nothing: items that were there already, users
            who were not.
        unknown: category column -> items added with a value that training never saw; columns
            without left out.
    """

    version: str | None
    changed: int
    left: list[str]
    unknown: dict[str, int] = field(default_factory=dict)


def add_items(path: str, file: str) -> Revised:
    """Write a new version of a bundle that can also recommend the items of a file, by content.

    Items that the bundle has already stay as they are.

    Args:
        path: a version's folder, or `bundles/` for the newest.
        file: CSV, JSONL or Parquet; its columns are named as in the table that the bundle was
            trained on, or as the configuration names them.

    Raises:
        ArtifactError: there is no bundle, or its text encoder is not on this machine.
        DataError: a row does not fit, or the bundle knows nothing of items but their ids. Nothing
            is written.
    """
    with _newest(path) as bundle:
        return _add_items(bundle, file)


def _add_items(bundle: Bundle, file: str) -> Revised:
    new, known = _read_items(bundle, file)
    if not new.num_rows:
        return Revised(None, 0, known)
    text = _encode(bundle, new)
    features = bundle.transform.item_features(new)
    inputs = feature_inputs(features, text, shift=0)
    if not bundle.sizes.items.text_width:
        inputs = replace(inputs, text=inputs.text[:, :0], has_text=inputs.has_text * 0.0)
    with torch.inference_mode():
        content = bundle.model.items.content(inputs).numpy()

    def fill(folder: str) -> None:
        _extend(bundle, folder, new, content, text)

    version = _write(bundle, fill, "add-items", new.column("item_id").to_pylist())
    values = {**features.categories, **features.multi}
    counts = {
        name: int((positions.reshape(new.num_rows, -1) == UNKNOWN).any(axis=1).sum())
        for name, positions in values.items()
    }
    unknown = {name: count for name, count in counts.items() if count}
    return Revised(version, new.num_rows, known, unknown)


def remove_users(path: str, user_ids: Sequence[str]) -> Revised:
    """Write a new version of a bundle that knows nothing of some users.

    Earlier versions are not touched: remove their folders when no server needs them any more. The
    dataset, the text vectors and the predictions of the run are not part of a bundle.

    Args:
        path: a version's folder, or `bundles/` for the newest.
        user_ids: as mtrec writes ids, as text.

    Raises:
        ArtifactError: there is no bundle.
    """
    with _newest(path) as bundle:
        return _remove_users(bundle, user_ids)


def _remove_users(bundle: Bundle, user_ids: Sequence[str]) -> Revised:
    wanted = list(dict.fromkeys(user_ids))
    found = bundle.users.find(wanted)
    absent = [user for user, at in zip(wanted, found.tolist(), strict=True) if at < 0]
    gone = found[found >= 0]
    if not len(gone):
        return Revised(None, 0, absent)

    def fill(folder: str) -> None:
        users = os.path.join(folder, "users")
        shutil.move(users, f"{users}.before")
        copy_without(f"{users}.before", users, gone)
        shutil.rmtree(f"{users}.before")

    return Revised(_write(bundle, fill, "remove-users", sorted(wanted)), len(gone), absent)


@contextmanager
def _newest(path: str) -> Iterator[Bundle]:
    """Load the bundle that a path means; meanwhile nobody else changes one beside it.

    Of two changes at once each would be made of the version before, and one would be lost.

    Raises:
        ArtifactError: there is no bundle, or somebody else is changing one.
    """
    with storage.explained("read the bundle", path):
        bundles = storage.parent(find_bundle(path))
    with hold_folder(bundles):
        with storage.explained("read the bundle", path):
            bundle = load_bundle(find_bundle(path))
        yield bundle


# ---- reading ------------------------------------------------------------------------------------


def _read_items(bundle: Bundle, file: str) -> tuple[pa.Table, list[str]]:
    """Give the rows of new items, in the order of ids and as `prepare` writes them, and known ids.

    Raises:
        DataError: see `add_items`.
    """
    table = bundle.config.data.items
    if table is None or not any(asdict(bundle.sizes.items).values()):
        raise DataError(
            f"bundle {bundle.version} knows items by their ids alone: a new one has nothing to be "
            "known by\ngive data.items with columns or text.item_template, and train again"
        )
    changes = {"path": storage.absolute(file), "format": "auto"}
    if bundle.transform.id_types.get("item_id") == "int64":
        changes["id_type"] = "integer"
    table = table.model_copy(update=changes)
    marked = pa.concat_tables(
        [
            contract.mark(raw, table)
            for piece, table in _plan(table)
            for raw in readers.read(piece, table)
        ]
        or [pa.table({})]
    )
    if not marked.num_rows:
        raise DataError(f"{file} holds no rows\ngive a table with one row an item")
    reasons = marked.column(REASON).to_pylist()
    ids = marked.column("item_id").to_pylist()
    twice = Counter(item for item, reason in zip(ids, reasons, strict=True) if reason is None)
    reasons = [
        reason or ("item_id is there more than once" if twice[item] > 1 else None)
        for item, reason in zip(ids, reasons, strict=True)
    ]
    _refuse(file, marked, reasons)
    have = bundle.items.column("item_id")
    is_known = pc.is_in(marked.column("item_id"), have.combine_chunks())
    known = marked.column("item_id").filter(is_known).to_pylist()
    new = marked.filter(pc.invert(is_known)).select(["item_id", *table.columns])
    new = new.sort_by("item_id").combine_chunks()
    texts = render_rows(new, bundle.config.text.item_template)
    first = bundle.sizes.num_items
    new = bundle.transform.fill_items(new)
    new = new.append_column("text", texts)
    columns = {
        "item_index": pa.array(np.arange(first, first + new.num_rows), pa.int32()),
        "train_count": pa.array(np.zeros(new.num_rows, np.int64)),
    }
    wanted = bundle.items.schema
    parts = [
        columns[field.name].cast(field.type)
        if field.name in columns
        else new.column(field.name).cast(field.type)
        for field in wanted
    ]
    return pa.table(parts, schema=wanted), known


def _plan(table: ItemsTable) -> list[tuple[readers.Piece, ItemsTable]]:
    """Cut the file into pieces, its columns named as at training or, else, by the configuration.

    Raises:
        DataError: the file is not there, or has the columns of neither.
    """
    try:
        return [(piece, table) for piece in readers.plan(table, "")]
    except DataError as error:
        columns = {
            name: column.model_copy(update={"source": None})
            for name, column in table.columns.items()
        }
        plain = table.model_copy(
            update={"columns": columns, "item_id": "item_id", "delimiter": ",", "encoding": "utf-8"}
        )
        with suppress(DataError):
            return [(piece, plain) for piece in readers.plan(plain, "")]
        # Its remedy is about a configuration, which nobody gave here.
        raise DataError(
            f"{str(error).splitlines()[0]}\n"
            "give --items a file with the columns of the items table that the bundle was trained on"
        ) from error


def _refuse(file: str, marked: pa.Table, reasons: Sequence[str | None]) -> None:
    """Raise where rows do not fit, naming the first of them."""
    wrong = [at for at, reason in enumerate(reasons) if reason is not None]
    if not wrong:
        return
    places = marked.column(PLACE).to_pylist()
    rows = marked.column(ROW).to_pylist()
    told = "; ".join(
        f"row {places[at] % readers.PLACES_PER_FILE + 1}: {reasons[at]}"
        + (f" ({rows[at]:.80})" if rows[at] else "")
        for at in wrong[:_SHOWN]
    )
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    raise DataError(
        f"{len(wrong)} of {len(reasons)} rows of {file} do not fit: {told}{more}\n"
        "nothing was added; mend them, or take them out"
    )


def _encode(bundle: Bundle, items: pa.Table) -> NDArray[np.float32]:
    """Give the text vectors of items (M, W), zeros where there is no text; (M, 0) without text."""
    if bundle.encoder is None or bundle.vectors.text is None:
        return np.zeros((items.num_rows, 0), np.float32)
    encoder = build_encoder(bundle.config.text)
    if not bundle.encoder.is_made_by(encoder.spec):
        raise ArtifactError(
            f'the text encoder "{encoder.name}" here is not the one that bundle {bundle.version} '
            "was trained with\ninstall the same model, or train again"
        )
    texts = [text or "" for text in items.column("text").to_pylist()]
    vectors = np.zeros((len(texts), encoder.dim), np.float32)
    told = [at for at, text in enumerate(texts) if text]
    if told:
        vectors[told] = encoder.encode([texts[at] for at in told])
    return vectors


# ---- writing ------------------------------------------------------------------------------------


def _write(bundle: Bundle, change: Callable[[str], None], name: str, what: Sequence[str]) -> str:
    """Write a version that is a copy of another, changed."""
    manifest = artifacts.read_manifest(bundle.path, KIND)
    key = storage.hash_values(name, manifest.key, manifest.content, list(what))

    def fill(folder: str) -> None:
        with local_files(bundle.path, manifest) as source:
            for file in manifest.files:
                target = os.path.join(folder, file)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copyfile(os.path.join(source, file), target)
        change(folder)
        description = storage.read_json(os.path.join(folder, "config.json"))
        description["revised"] = [*description.get("revised", []), name]
        storage.write_json(os.path.join(folder, "config.json"), description)

    details = {name: value for name, value in manifest.details.items() if name != "version"}
    return write_version(
        storage.parent(bundle.path),
        fill,
        key=key,
        parents={"bundle": manifest.id},
        details=details,
    )


def _extend(
    bundle: Bundle,
    folder: str,
    new: pa.Table,
    content: NDArray[np.float32],
    text: NDArray[np.float32],
) -> None:
    """Put items behind those of a bundle's copy: what an item without events has, and content."""
    before, count = bundle.sizes.num_items, new.num_rows

    def extend(name: str, rows: NDArray[np.generic], axis: int = 0) -> None:
        path = os.path.join(folder, name)
        values = np.load(path, allow_pickle=False)
        np.save(path, np.concatenate([values, rows.astype(values.dtype)], axis), allow_pickle=False)

    extend("item_content.npy", content)
    extend("item_collaborative.npy", np.zeros_like(content))
    ials = bundle.ials
    search = [content]
    if ials is not None:
        told = np.zeros((count, ials.items.shape[1]), np.float32)
        if ials.text_map is not None:
            told = ials.text_map(text)
            extend("ials_told.npy", np.asarray(text.any(axis=1)))
        extend("ials_items.npy", told)
        search.append(told)
    extend("item_search.npy", np.concatenate(search, axis=1))
    extend("item_bias.npy", np.zeros(count))
    if bundle.vectors.text is not None:
        extend("item_text.npy", text)
    if bundle.item_item is not None:
        end = bundle.item_item.weights.indptr[-1]
        extend("item_item_indptr.npy", np.full(count, end))
    if bundle.factors is not None:
        draws = bundle.factors.factors.items
        unknown = draws[:, NUM_SPECIAL - 1 : NUM_SPECIAL]
        extend("factors_items.npy", np.repeat(unknown, count, axis=1), axis=1)
    path = os.path.join(folder, "weights.safetensors")
    weights = load_file(path)
    for name in _item_tables(bundle):
        value = weights[name]
        weights[name] = torch.cat([value, value.new_zeros(count, *value.shape[1:])])
    storage.write_bytes(path, save(weights))
    _append(os.path.join(folder, "items.parquet"), new)
    path = os.path.join(folder, "popular.parquet")
    zeros = pa.array(np.zeros(count))
    counts = dict.fromkeys(read_table(path).column_names, zeros)
    _append(path, pa.table({**counts, "item_id": new.column("item_id")}))
    path = os.path.join(folder, "config.json")
    description = storage.read_json(path)
    description["sizes"]["num_items"] = before + count
    storage.write_json(path, description)


def _item_tables(bundle: Bundle) -> set[str]:
    """Name the parameters with one row an item."""
    ranking = bundle.model.ranking
    tables = [bundle.model.items.collaborative, bundle.model.items.bias]
    tables += [ranking.usual, ranking.implicit, ranking.explicit, ranking.item_bias]
    tables += list(ranking.targets.values())  # type: ignore[arg-type]  # all are embeddings
    wanted = {id(table.weight) for table in tables}
    return {name for name, value in bundle.model.named_parameters() if id(value) in wanted}


def _append(path: str, rows: pa.Table) -> None:
    table = read_table(path)
    pq.write_table(pa.concat_tables([table, rows.cast(table.schema)]), path)
