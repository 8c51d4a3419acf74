"""The model to ship: one immutable folder with all that it takes to answer, written and read here.

`train` saves a bundle from a trained model and a dataset; `Recommender` loads it and needs nothing
else. JSON, safetensors, npy and Parquet only: reading a bundle runs none of its bytes as code. A
reader checks every file against the manifest before it trusts one. Nothing here ranks anything.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from mtrec import artifacts, storage
from mtrec.catalogue import NUM_SPECIAL
from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.data.dataset import history_files, read_table
from mtrec.data.features import FeatureTransform
from mtrec.data.histories import Histories
from mtrec.errors import ArtifactError, ConfigError
from mtrec.factors import Factors, FactorTerm
from mtrec.ials import ARRAYS, ImplicitFactors
from mtrec.itemitem import ItemItem
from mtrec.localcopy import local_files
from mtrec.model.network import MultiTaskModel, build_model
from mtrec.model.sizes import ModelSizes
from mtrec.popular import decayed_counts, item_counts, time_span
from mtrec.text.spec import EncoderSpec
from mtrec.userstore import SocialRows, UserStore, build_user_store
from mtrec.versions import KIND, find_bundle, write_version

_SEARCH = "item_search.npy"
_ITEM_ARRAYS = ("item_content", "item_collaborative", "item_bias")


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """Which text encoder made the vectors.

    Attributes:
        id: of the encoder, precision included.
        name: as configured.
        dim: width of a vector.
        model_id: of the encoder, whatever its precision; empty if not known.
    """

    id: str
    name: str
    dim: int
    model_id: str = ""

    def is_made_by(self, spec: EncoderSpec) -> bool:
        """Tell whether an encoder's vectors may stand beside these; precision does not matter."""
        if self.dim != spec.dim:
            return False
        return self.id == spec.id or (self.model_id != "" and self.model_id == spec.model_id)


@dataclass(frozen=True, slots=True)
class ItemArrays:
    """Vectors of the N items that a trained model gives, rows 0 and 1 zeros.

    Attributes:
        content: (N, D) float32.
        collaborative: (N, D) float32.
        bias: (N,) float32.
        text: (N, W), vectors of the text encoder, zeros for items without text; None: no text.
        search: (N, D + K) float32, what retrieval searches: the sum of the first two and, where the
            bundle has them, the K factors of iALS. Made when a bundle is written.
    """

    content: NDArray[np.float32]
    collaborative: NDArray[np.float32]
    bias: NDArray[np.float32]
    text: NDArray[np.floating] | None = None
    search: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read and checked.

    Attributes:
        path: the version's folder or URI.
        version: its name.
        config: the configuration of the run that made it.
        sizes: what the data decided about the model.
        encoder: the text encoder of its vectors; None without text.
        transform: turns item, user and event columns into model inputs.
        items: the catalogue, row i is the item at position i + 2.
        model: on the CPU, in evaluation mode.
        vectors: what the model gives for the catalogue.
        item_item: the sparse part of retrieval; None: there is none.
        ials: the low-rank part of retrieval; None: there is none.
        factors: the factorised part of the ranking tasks; None: there is none.
        users: what answers by user id.
        popular: (N,) float64, kept events per item, decayed where there is a half-life.
        half_life: that of recent popularity, as a share of the time spanned, where the model has
            it; None: events count alike.
        metrics: validation values of the exported epoch.
        fitted_on: the splits that the model was fitted on.
        created: time of training, ISO 8601 in UTC.
    """

    path: str
    version: str
    config: Config
    sizes: ModelSizes
    encoder: EncoderInfo | None
    transform: FeatureTransform
    items: pa.Table
    model: MultiTaskModel
    vectors: ItemArrays
    item_item: ItemItem | None
    ials: ImplicitFactors | None
    factors: FactorTerm | None
    users: UserStore
    popular: NDArray[np.float64]
    half_life: float | None
    metrics: dict[str, Any]
    fitted_on: list[str]
    created: str


def save_bundle(
    bundles: str,
    *,
    config: Config,
    model: MultiTaskModel,
    sizes: ModelSizes,
    transform: FeatureTransform,
    dataset: str,
    vectors: ItemArrays,
    item_item: ItemItem | None = None,
    ials: ImplicitFactors | None = None,
    factors: FactorTerm | None = None,
    user_text: NDArray[np.floating] | None = None,
    social: SocialRows | None = None,
    encoder: EncoderInfo | None = None,
    metrics: Mapping[str, Any] | None = None,
    fitted_on: Sequence[str] = ("train",),
    half_life: float | None = None,
    key: str,
    parents: Mapping[str, str] | None = None,
) -> str:
    """Write a new bundle version, point `CURRENT` at it and give the version's name.

    Args:
        bundles: folder or URI that holds the versions.
        config: the resolved configuration.
        model: its `state_dict` is saved.
        sizes: what `build_model` needs beside the configuration.
        transform: the dataset's.
        dataset: folder or URI of the dataset; its items, users and all kept events go in.
        vectors: what the model gives for the catalogue, and the items' text vectors.
        item_item: the sparse part of retrieval.
        ials: the low-rank part of retrieval.
        factors: the factorised part of the ranking tasks.
        user_text: (U, W), one row for each row of the dataset's users, zeros where a user has no
            text; None: users have no text.
        social: links between the dataset's users and their social vectors, for a social task.
        encoder: of the text vectors.
        metrics: JSON-like, goes to `metrics.json`.
        fitted_on: the splits whose events the weights have seen.
        half_life: of recent popularity, if the model has it.
        key: hash of the work; its first 8 characters end the version's name.
        parents: ids of the artifacts that it was made from.
    """
    items = read_table(storage.join(dataset, "items.parquet"))
    num_items = items.num_rows + NUM_SPECIAL
    assert num_items == sizes.num_items == len(vectors.bias), "one vector for each item"
    created = datetime.now(UTC)
    histories = history_files(dataset)

    def fill(folder: str) -> None:
        weights = {
            # Cloned: safetensors refuses tensors that share memory.
            name: value.detach().cpu().contiguous().clone()
            for name, value in model.state_dict().items()
        }
        # Not by `save_file`: that makes it for its owner alone, and servers run as somebody
        # else; and it does not say that the disk is full as the others do.
        storage.write_bytes(os.path.join(folder, "weights.safetensors"), save(weights))
        for name in _ITEM_ARRAYS:
            values = np.asarray(getattr(vectors, name.removeprefix("item_")), np.float32)
            np.save(os.path.join(folder, f"{name}.npy"), values, allow_pickle=False)
        np.save(
            os.path.join(folder, _SEARCH),
            search_vectors(vectors.content, vectors.collaborative, ials),
            allow_pickle=False,
        )
        if vectors.text is not None:
            text = np.asarray(vectors.text, np.float16)
            np.save(os.path.join(folder, "item_text.npy"), text, allow_pickle=False)
        for prefix, part in (
            ("item_item", item_item),
            ("ials", ials),
            ("factors", factors.factors if factors is not None else None),
        ):
            for name, array in part.to_arrays().items() if part is not None else ():
                place = os.path.join(folder, f"{prefix}_{name}.npy")
                np.save(place, array, allow_pickle=False)
        pq.write_table(items, os.path.join(folder, "items.parquet"))
        popular = _popular(histories, items, half_life)
        pq.write_table(popular, os.path.join(folder, "popular.parquet"))
        build_user_store(
            os.path.join(folder, "users"),
            histories,
            read_table(storage.join(dataset, "users.parquet")),
            transform,
            max_events=config.model.kept_events,
            text=user_text,
            social=social,
        )
        description = {
            "config": config.model_dump(mode="json"),
            "sizes": sizes.to_json(),
            "encoder": _encoder_to_json(encoder),
            "fitted_on": list(fitted_on),
            "half_life": half_life,
            "created": created.isoformat(timespec="seconds"),
        }
        for name, tree in (
            ("config.json", description),
            ("transform.json", transform.to_json()),
            ("metrics.json", dict(metrics or {})),
            *_factors_tree(factors),
        ):
            storage.write_json(os.path.join(folder, name), tree)

    return write_version(
        bundles,
        fill,
        key=key,
        parents=parents,
        details={
            "num_items": items.num_rows,
            "fitted_on": list(fitted_on),
            "encoder": _encoder_to_json(encoder),
        },
    )


def search_vectors(
    content: NDArray[np.float32],
    collaborative: NDArray[np.float32],
    ials: ImplicitFactors | None,
) -> NDArray[np.float32]:
    """Give what retrieval searches, see `ItemArrays`: (N, D + K) float32."""
    fused: NDArray[np.float32] = np.asarray(content, np.float32) + np.asarray(
        collaborative, np.float32
    )
    return fused if ials is None else np.concatenate([fused, ials.items], axis=1)


def load_bundle(path: str) -> Bundle:
    """Read a bundle and check every file's hash, at a version's folder or through `CURRENT`.

    Raises:
        ArtifactError: there is none, a file is damaged, or the parts do not fit together.
    """
    with storage.explained("read the bundle", path):
        place = find_bundle(path)
        manifest = artifacts.read_manifest(place, KIND)
        with local_files(place, manifest) as folder:
            artifacts.verify(folder, manifest, hashes=True)
            try:
                return _read(folder, place)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise _unreadable(place, error) from error
            except (RuntimeError, ConfigError, SafetensorError, pa.ArrowException) as error:
                raise _unreadable(place, error) from error


def _read(folder: str, place: str) -> Bundle:
    def tree(name: str) -> Any:
        return storage.read_json(os.path.join(folder, name))

    def array(name: str) -> NDArray[Any]:
        # Mapped, each page private once it is written to, which none is: processes of one machine
        # that serve the same bundle share what it takes.
        place = os.path.join(folder, name)
        values: NDArray[Any] = np.load(place, mmap_mode="c", allow_pickle=False).view(np.ndarray)
        return values

    description = tree("config.json")
    config = parse_config(description["config"], name="config.json")
    sizes = ModelSizes.from_json(description["sizes"])
    model = build_model(config.model, config.tasks, sizes)
    # Assigned, not copied: the weights stay mapped.
    model.load_state_dict(load_file(os.path.join(folder, "weights.safetensors")), assign=True)
    model.eval()
    items = read_table(os.path.join(folder, "items.parquet"))
    ids = items.column("item_id").to_pylist()
    content, collaborative, bias = (array(f"{name}.npy") for name in _ITEM_ARRAYS)
    has_text = os.path.exists(os.path.join(folder, "item_text.npy"))
    text = array("item_text.npy") if has_text else None
    item_item = None
    if os.path.exists(os.path.join(folder, "item_item_data.npy")):
        names = ["indptr", "indices", "data"]
        for name in ("half_life", "amount"):
            if os.path.exists(os.path.join(folder, f"item_item_{name}.npy")):
                names.append(name)
        term = config.model.item_item
        item_item = ItemItem.from_arrays(
            {name: array(f"item_item_{name}.npy") for name in names},
            sizes.num_items,
            term.amount if term is not None else None,
        )
    ials = None
    if os.path.exists(os.path.join(folder, "ials_items.npy")):
        files = {name: f"ials_{name}.npy" for name in ARRAYS}
        ials = ImplicitFactors.from_arrays(
            {
                name: array(file)
                for name, file in files.items()
                if os.path.exists(os.path.join(folder, file))
            },
            sizes.num_items,
        )
    factors = None
    if os.path.exists(os.path.join(folder, "factors.json")):
        joined = tree("factors.json")
        factors = FactorTerm(
            Factors.from_arrays(
                {part.name: array(f"factors_{part.name}.npy") for part in fields(Factors)},
                sizes.num_items,
            ),
            joined["column"],
            joined["length"],
            {task: np.array(weights, np.float64) for task, weights in joined["weights"].items()},
        )
    is_fused = os.path.exists(os.path.join(folder, _SEARCH))
    search = array(_SEARCH) if is_fused else search_vectors(content, collaborative, ials)
    shape = (sizes.num_items, config.model.embedding_dim)
    shapes = (content.shape, collaborative.shape, bias.shape, search.shape[:1])
    if shapes != (shape, shape, shape[:1], shape[:1]) or len(ids) + NUM_SPECIAL != sizes.num_items:
        raise ValueError(f"item arrays do not have {sizes.num_items} rows")
    popular = np.zeros(sizes.num_items)
    counts = read_table(os.path.join(folder, "popular.parquet"))
    position = {item_id: at + NUM_SPECIAL for at, item_id in enumerate(ids)}
    rows = [position[item_id] for item_id in counts.column("item_id").to_pylist()]
    recent = "recent" if "recent" in counts.column_names else "count"
    popular[rows] = counts.column(recent).to_numpy()
    encoder = description["encoder"]
    return Bundle(
        path=place,
        version=storage.base_name(place),
        config=config,
        sizes=sizes,
        encoder=EncoderInfo(**encoder) if encoder else None,
        transform=FeatureTransform.from_json(tree("transform.json")),
        items=items,
        model=model,
        vectors=ItemArrays(content, collaborative, bias, text, search),
        item_item=item_item,
        ials=ials,
        factors=factors,
        users=UserStore(os.path.join(folder, "users")),
        popular=popular,
        half_life=description.get("half_life"),
        metrics=tree("metrics.json"),
        fitted_on=description["fitted_on"],
        created=description["created"],
    )


def _factors_tree(factors: FactorTerm | None) -> list[tuple[str, Any]]:
    if factors is None:
        return []
    weights = {task: values.tolist() for task, values in factors.weights.items()}
    tree = {"column": factors.column, "length": factors.length, "weights": weights}
    return [("factors.json", tree)]


def _unreadable(place: str, error: Exception) -> ArtifactError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ArtifactError(
        f"the bundle at {place} cannot be read: {lines[0]:.200}\n"
        "read it with the mtrec that wrote it, or train again"
    )


def _popular(histories: Sequence[str], items: pa.Table, half_life: float | None) -> pa.Table:
    """Count kept events per item, most first; with a half-life also decayed, as `recent`."""
    num_items = items.num_rows + NUM_SPECIAL
    counts, spans = np.zeros(num_items, np.int64), list[tuple[float, float]]()
    # A part at a time: together they may not fit.
    for path in histories:
        part = Histories.from_table(read_table(path))
        counts += item_counts(part, num_items)
        spans += [span for span in [time_span(part)] if span is not None]
    columns: dict[str, NDArray[Any]] = {"count": counts[NUM_SPECIAL:]}
    if half_life is not None and spans:
        whole = min(first for first, _ in spans), max(latest for _, latest in spans)
        recent = np.zeros(num_items)
        for path in histories:
            part = Histories.from_table(read_table(path))
            recent += decayed_counts(part, num_items, half_life, whole)
        columns["recent"] = recent[NUM_SPECIAL:]
    order = np.argsort(-columns["count"], kind="stable")
    ids = items.column("item_id").take(pa.array(order))
    return pa.table({"item_id": ids, **{name: values[order] for name, values in columns.items()}})


def _encoder_to_json(encoder: EncoderInfo | None) -> dict[str, Any] | None:
    if encoder is None:
        return None
    return asdict(encoder)
