"""The content-addressed store of text vectors: a text once embedded is never embedded again.

One folder per encoder id holds `encoder.json` and immutable Parquet shards, each named by the
SHA-256 of its own bytes, so that writers on many machines never meet and damage is always seen.
Shards are only ever added; what a killed run had finished stays. Written by the actors of
`text/embed.py`, read by training and bundling. It never encodes and knows no Ray.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtrec import storage
from mtrec.config import TextConfig
from mtrec.errors import ArtifactError
from mtrec.text.spec import EncoderSpec, TokenCounts

_FORMAT_VERSION = 1
_KEY = pa.binary(32)


def store_path(config: TextConfig, embeddings: str) -> str:
    """Give the folder of the stores: the configured one, else the embeddings artifact's own."""
    return config.store or embeddings


class EmbeddingStore:
    """The vectors of one encoder.

    An instance reads each shard's keys once; shards that other processes add later are seen by the
    next call. The empty text is absent: it is never missing, never added, and looked up as zeros.
    """

    def __init__(self, path: str, encoder_id: str) -> None:
        """Open the store of one encoder.

        Args:
            path: folder or URI of the stores of all encoders.
            encoder_id: which one; see `EncoderSpec.id`.

        Raises:
            ArtifactError: there is none, or it is another encoder's.
        """
        self.path = storage.join(path, encoder_id)
        self.spec = _read_spec(self.path, encoder_id)
        # Shard name -> its keys, in the order in which `_index` numbers their rows.
        self._keys: dict[str, pa.FixedSizeBinaryArray] = {}

    @classmethod
    def create(cls, path: str, spec: EncoderSpec) -> "EmbeddingStore":
        """Open the store of an encoder, making an empty one if there is none yet.

        Raises:
            ArtifactError: the one that is there says other things about the encoder.
        """
        place = storage.join(path, spec.id, "encoder.json")
        if not storage.exists(place):
            storage.write_json(place, {"format_version": _FORMAT_VERSION, **asdict(spec)})
        store = cls(path, spec.id)
        if (store.spec.dim, store.spec.pooling) != (spec.dim, spec.pooling):
            raise ArtifactError(
                f"{place} is of an encoder with dim {store.spec.dim}, pooling "
                f"{store.spec.pooling}; expected dim {spec.dim}, pooling {spec.pooling}\n"
                f"remove {store.path} and run again"
            )
        return store

    @property
    def dim(self) -> int:
        """Give the width of the vectors."""
        return self.spec.dim

    def key(self, text: str) -> str:
        """Give the key of a text, as hex: SHA-256 of the encoder's id, a zero byte, the text."""
        return self._digest(text).hex()

    def missing(self, texts: Sequence[str]) -> list[str]:
        """List the texts that have no vector yet, each once, in the order given."""
        unique = list(dict.fromkeys(text for text in texts if text))
        rows = self._rows(unique)
        return [text for text, row in zip(unique, rows.tolist(), strict=True) if row < 0]

    def add(
        self, texts: Sequence[str], vectors: NDArray[np.float32], counts: TokenCounts | None = None
    ) -> str | None:
        """Write one shard; it appears whole or not at all.

        Args:
            texts: N texts; empty ones are left out.
            vectors: (N, dim) float32, finite.
            counts: tokens of each text, for `count_tokens`; zeros by default.

        Returns:
            name of the shard; None if there was nothing to write.

        Raises:
            ArtifactError: the vectors have another width or are not finite.
        """
        if vectors.shape != (len(texts), self.dim) or not np.isfinite(vectors).all():
            raise ArtifactError(
                f"cannot store vectors in {self.path}: found shape {vectors.shape}, expected "
                f"({len(texts)}, {self.dim}) finite numbers\n"
                "check the encoder: it gives NaN, infinity or another width"
            )
        keep = np.array([bool(text) for text in texts], dtype=bool)
        if not keep.any():
            return None
        zeros = np.zeros(len(texts), dtype=np.int32)
        table = pa.table(
            {
                "key": pa.array([self._digest(text) for text in texts if text], _KEY),
                "vector": pa.FixedSizeListArray.from_arrays(
                    np.ascontiguousarray(vectors[keep], dtype=np.float32).ravel(), self.dim
                ),
                "tokens": (counts.total if counts else zeros)[keep],
                "unknown_tokens": (counts.unknown if counts else zeros)[keep],
            }
        )
        buffer = io.BytesIO()
        # Neither hashes nor vectors have anything for a dictionary or a compressor.
        pq.write_table(table, buffer, compression="none", use_dictionary=False)
        data = buffer.getvalue()
        name = f"{hashlib.sha256(data).hexdigest()}.parquet"
        storage.write_bytes(storage.join(self.path, name), data)
        return name

    def lookup(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Give the vectors of texts: (N, dim) float32, a zero row for each empty text.

        Raises:
            ArtifactError: a text has no vector, or a shard is damaged.
        """
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for rows, shard, positions in self._find(texts):
            flat = shard["vector"].combine_chunks().flatten().to_numpy()
            vectors[rows] = flat.reshape(-1, self.dim)[positions]
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> TokenCounts:
        """Give the tokens of texts, as counted when they were embedded; 0 for empty texts.

        Raises:
            ArtifactError: a text has no vector, or a shard is damaged.
        """
        counts = TokenCounts(np.zeros(len(texts), np.int32), np.zeros(len(texts), np.int32))
        for rows, shard, positions in self._find(texts):
            counts.total[rows] = shard["tokens"].to_numpy()[positions]
            counts.unknown[rows] = shard["unknown_tokens"].to_numpy()[positions]
        return counts

    def files(self) -> dict[str, dict[str, object]]:
        """List the shards for a manifest: name -> {"sha256": hex, "bytes": size}."""
        system, inner = storage.filesystem(self.path)
        return {
            name: {
                "sha256": name.removesuffix(".parquet"),
                "bytes": system.get_file_info(f"{inner}/{name}").size,
            }
            for name in self._shards()
        }

    def _digest(self, text: str) -> bytes:
        # With the encoder's id, a shard that strays into another encoder's folder matches nothing.
        return hashlib.sha256(f"{self.spec.id}\0{text}".encode()).digest()

    def _shards(self) -> list[str]:
        return [name for name in storage.list_files(self.path) if name.endswith(".parquet")]

    def _rows(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Give for each text its row, counted through all shards; -1 if there is none."""
        for name in self._shards():
            if name not in self._keys:
                self._keys[name] = self._read(name, ["key"])["key"].combine_chunks()
        if not self._keys or not texts:
            return np.full(len(texts), -1, dtype=np.int64)
        wanted = pa.array([self._digest(text) for text in texts], _KEY)
        known = pa.chunked_array(list(self._keys.values()))
        rows: NDArray[np.int64] = (
            pc.fill_null(pc.index_in(wanted, value_set=known), -1).to_numpy().astype(np.int64)
        )
        return rows

    def _find(
        self, texts: Sequence[str]
    ) -> Iterator[tuple[NDArray[np.int64], pa.Table, NDArray[np.int64]]]:
        """Yield (positions in texts, shard, rows in the shard) for each shard that is needed."""
        asked = np.flatnonzero(np.array([bool(text) for text in texts], dtype=bool))
        rows = self._rows([texts[int(position)] for position in asked])
        if (rows < 0).any():
            absent = texts[int(asked[np.argmax(rows < 0)])]
            raise ArtifactError(
                f"{self.path} has no vector for {int((rows < 0).sum())} of {len(asked)} texts, "
                f"the first is {absent[:60]!r}\nrun embed again"
            )
        names = list(self._keys)
        starts = np.cumsum([0, *(len(keys) for keys in self._keys.values())])
        shard_index = np.searchsorted(starts, rows, side="right") - 1
        for index in np.unique(shard_index):
            here = shard_index == index
            yield asked[here], self._read(names[index]), rows[here] - starts[index]

    def _read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a shard: some columns as they are, or the whole with its SHA-256 checked."""
        place = storage.join(self.path, name)
        try:
            if columns is not None:
                system, inner = storage.filesystem(place)
                with system.open_input_file(inner) as file:
                    return pq.read_table(file, columns=list(columns))
            data = storage.read_bytes(place)
            found = hashlib.sha256(data).hexdigest()
            if found != name.removesuffix(".parquet"):
                raise pa.ArrowInvalid(f"its bytes have SHA-256 {found[:12]}...")
            table = pq.read_table(pa.BufferReader(data))
            if table.schema.field("vector").type.list_size != self.dim:
                raise pa.ArrowInvalid(f"its vectors are not {self.dim} wide")
        except (pa.ArrowException, OSError, KeyError) as error:
            if storage.is_remote_failure(error):
                raise
            raise ArtifactError(
                f"shard {place} is damaged: {str(error).splitlines()[0]}\n"
                "remove that file and run embed again; only its texts are embedded anew"
            ) from error
        return table


def _read_spec(path: str, encoder_id: str) -> EncoderSpec:
    """Read and check a store's `encoder.json`."""
    place = storage.join(path, "encoder.json")
    try:
        tree = storage.read_json(place)
        if tree.pop("format_version") != _FORMAT_VERSION:
            raise ValueError(f"expected format version {_FORMAT_VERSION}")
        spec = EncoderSpec(**tree)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} is no store of text vectors: no encoder.json found\nrun embed first"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{place} is damaged: {error}\nremove {path} and run embed again"
        ) from error
    if spec.id != encoder_id:
        raise ArtifactError(
            f"{place} is of encoder {spec.id}, expected {encoder_id}\n"
            f"vectors of two encoders must not be mixed: remove {path} and run embed again"
        )
    return spec
