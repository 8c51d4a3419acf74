"""The driver of `embed`: each text once and never again, on a pool of Ray Data actors."""

import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec import artifacts, storage
from mtrec.artifacts import Manifest
from mtrec.config import Config
from mtrec.errors import ArtifactError, ConfigError
from mtrec.text import embed as embed_module
from mtrec.text.embed import embed, unique_texts
from mtrec.text.hashing import HashingEncoder
from mtrec.text.spec import TokenCounts
from mtrec.text.store import EmbeddingStore

ENCODER = HashingEncoder(16)


def write_dataset(
    folder: Path,
    items: Sequence[str | None],
    profiles: Sequence[str | None] = (),
    behaviour: Sequence[str | None] | None = None,
) -> str:
    path = str(folder / "dataset")
    with artifacts.write_artifact(path, kind="dataset", key="d") as writer:
        pq.write_table(
            pa.table({"text": pa.array(items, pa.string())}), writer.join("items.parquet")
        )
        users = {
            "user_id": [str(row) for row in range(len(profiles))],
            "text": pa.array(profiles, pa.string()),
            "behaviour_text": pa.array(behaviour or [None] * len(profiles), pa.string()),
        }
        pq.write_table(pa.table(users), writer.join("users.parquet"))
    return path


def build_config(**text: object) -> Config:
    columns = {"title": {"kind": "text"}}
    return Config.model_validate(
        {
            "data": {
                "interactions": {"path": "x"},
                "items": {"path": "y", "columns": columns},
            },
            "text": {
                "item_template": "{title}",
                "encoder": "hashing",
                "dimension": 16,
                "device": "cpu",
                **text,
            },
            "tasks": [{"name": "next", "kind": "retrieval"}],
        }
    )


def run(tmp_path: Path, dataset: str, **text: object) -> Manifest:
    return embed(
        build_config(**text),
        dataset=dataset,
        path=str(tmp_path / "embeddings"),
        key="k",
        parents={"dataset": "d1"},
    )


def open_store(tmp_path: Path, manifest: Manifest) -> EmbeddingStore:
    return EmbeddingStore(str(tmp_path / "embeddings"), manifest.details["encoder"]["id"])


def test_unique_texts_leaves_out_absent_ones_and_sorts_by_length(tmp_path: Path) -> None:
    dataset = write_dataset(
        tmp_path, ["ccc", None, "a", "", "b"], ["a", None, "dd"], ["", "ccc", "a  long one"]
    )

    assert unique_texts(dataset) == ["a", "b", "dd", "ccc", "a  long one"]


@pytest.mark.ray
def test_every_text_gets_its_vector_and_the_manifest_says_how_many(
    ray_local: None, tmp_path: Path
) -> None:
    dataset = write_dataset(
        tmp_path, ["Alien", "Heat", "Alien", None], ["likes x"], ["liked: Heat"]
    )

    manifest = run(tmp_path, dataset)

    texts = ["liked: Heat", "Heat", "", "Alien", "likes x"]
    found = open_store(tmp_path, manifest).lookup(texts)
    np.testing.assert_array_equal(found, ENCODER.encode(texts))
    details = manifest.details
    assert (details["unique_texts"], details["embedded"], details["reused"]) == (4, 4, 0)
    assert (details["actors"], details["device"]) == (1, "cpu")
    assert details["encoder"]["id"] == ENCODER.id
    assert details["encoder"]["dim"] == 16
    assert (manifest.kind, manifest.key, manifest.parents) == ("embeddings", "k", {"dataset": "d1"})
    assert artifacts.read_manifest(str(tmp_path / "embeddings"), "embeddings") == manifest
    artifacts.verify(str(tmp_path / "embeddings"), manifest, hashes=True)


@pytest.mark.ray
def test_a_second_run_loads_no_encoder_and_starts_no_job(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(tmp_path, ["Alien", "Heat"])
    first = run(tmp_path, dataset)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing was to be embedded")

    monkeypatch.setattr(embed_module.ray.data, "from_arrow", refuse)
    monkeypatch.setattr(embed_module, "build_encoder", refuse)
    second = run(tmp_path, dataset)

    assert (second.details["embedded"], second.details["reused"]) == (0, 2)
    assert second.details["actors"] == 0
    assert second.files == first.files
    assert second.content == first.content
    assert second.id != first.id


@pytest.mark.ray
def test_one_added_text_embeds_exactly_one(ray_local: None, tmp_path: Path) -> None:
    run(tmp_path, write_dataset(tmp_path, ["Alien", "Heat"]))

    manifest = run(tmp_path, write_dataset(tmp_path, ["Alien", "Heat", "Brazil"]))

    assert (manifest.details["embedded"], manifest.details["reused"]) == (1, 2)
    assert sum(actor["texts"] for actor in manifest.details["per_actor"]) == 1
    assert len(manifest.files) == 2


@pytest.mark.ray
def test_what_a_killed_run_had_finished_is_not_done_again(ray_local: None, tmp_path: Path) -> None:
    # A killed run leaves shards, half a shard under a temporary name, and no manifest.
    store = EmbeddingStore.create(str(tmp_path / "embeddings"), ENCODER.spec)
    done = ["Alien", "Heat"]
    store.add(done, ENCODER.encode(done), ENCODER.count_tokens(done))
    half = tmp_path / "embeddings" / ENCODER.id / f"abc.parquet.{'0' * 32}.tmp"
    half.write_bytes(b"half")

    manifest = run(tmp_path, write_dataset(tmp_path, ["Alien", "Heat", "Brazil", "Solaris"]))

    assert (manifest.details["embedded"], manifest.details["reused"]) == (2, 2)
    assert not half.exists()


@pytest.mark.ray
def test_the_store_may_be_shared_between_runs(ray_local: None, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, ["Alien", "Heat"])
    shared = str(tmp_path / "shared")
    run(tmp_path / "one", dataset, store=shared)

    manifest = run(tmp_path / "two", dataset, store=shared)

    assert manifest.details["embedded"] == 0
    assert manifest.files == {}
    assert storage.list_files(str(tmp_path / "two")) == ["embeddings/manifest.json"]


@pytest.mark.ray
def test_another_encoder_embeds_anew_beside_the_first(ray_local: None, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, ["Alien", "Heat"])
    first = run(tmp_path, dataset)

    second = run(tmp_path, dataset, dimension=8)

    assert second.details["embedded"] == 2
    assert open_store(tmp_path, second).lookup(["Alien"]).shape == (1, 8)
    assert open_store(tmp_path, first).lookup(["Alien"]).shape == (1, 16)


def test_without_templates_there_is_nothing_to_embed_and_no_encoder(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [None, None])

    manifest = run(tmp_path, dataset, item_template=None)

    assert manifest.details["encoder"] is None
    assert manifest.details["unique_texts"] == 0
    assert storage.list_files(str(tmp_path / "embeddings")) == ["manifest.json"]


@pytest.mark.ray
@pytest.mark.parametrize(("unknown", "warns"), [(2, False), (3, True)])
def test_more_than_a_fifth_of_unknown_tokens_warns_with_the_remedy(
    ray_local: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, unknown: int, warns: bool
) -> None:
    store = EmbeddingStore.create(str(tmp_path / "embeddings"), ENCODER.spec)
    counts = TokenCounts(np.array([6, 4], np.int32), np.array([unknown, 0], np.int32))
    store.add(["Alien", "Heat"], ENCODER.encode(["Alien", "Heat"]), counts)
    logging.getLogger("mtrec").propagate = True

    manifest = run(tmp_path, write_dataset(tmp_path, ["Alien", "Heat"]))

    assert manifest.details["unknown_token_fraction"] == unknown / 10
    assert ("jobs/configs/multilingual.yaml" in caplog.text) == warns
    assert len(manifest.details["warnings"]) == warns


@pytest.mark.ray
@pytest.mark.slow
def test_chinese_texts_warn_with_the_bundled_encoder(ray_local: None, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, ["我喜欢科幻电影", "浪漫爱情故事", "太空冒险"])

    manifest = run(tmp_path, dataset, encoder="all-minilm-l6-v2")

    assert manifest.details["unknown_token_fraction"] > 0.2
    assert "multilingual" in manifest.details["warnings"][0]
    assert manifest.details["encoder"]["dim"] == 384


@pytest.mark.ray
def test_a_missing_gpu_that_was_asked_for_is_a_configuration_error(
    ray_local: None, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path, ["Alien"])

    with pytest.raises(ConfigError, match="the Ray cluster has no GPU"):
        run(tmp_path, dataset, device="cuda", encoder="all-minilm-l6-v2")


@pytest.mark.ray
def test_a_node_with_another_model_stops_the_run_with_the_reason(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The driver describes an encoder of 8 wide, the actors build the configured one of 16.
    monkeypatch.setattr(
        embed_module, "describe_encoder", lambda *_args, **_options: HashingEncoder(8).spec
    )

    with pytest.raises(ArtifactError, match="not the same on every machine"):
        run(tmp_path, write_dataset(tmp_path, ["Alien"]))

    assert artifacts.find_manifest(str(tmp_path / "embeddings")) is None


@pytest.mark.ray
def test_damage_is_named_and_leaves_no_manifest(ray_local: None, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, ["Alien", "Heat"])
    manifest = run(tmp_path, dataset)
    (name,) = manifest.files
    (tmp_path / "embeddings" / name).write_bytes(b"PAR1")

    with pytest.raises(ArtifactError, match=f"{name} is damaged"):
        run(tmp_path, dataset)

    assert artifacts.find_manifest(str(tmp_path / "embeddings")) is None


def test_a_damaged_dataset_is_named(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, ["Alien"])
    Path(dataset, "items.parquet").write_bytes(b"PAR1")

    with pytest.raises(ArtifactError, match=r"items\.parquet is damaged"):
        unique_texts(dataset)


@pytest.mark.parametrize("actors", [1, 3])
def test_shards_are_bounded_and_hold_every_text_in_order(actors: int) -> None:
    lengths = sorted(np.random.default_rng(0).integers(1, 3000, size=5000).tolist())
    texts = ["x" * length for length in lengths]

    shards = embed_module._plan_shards(texts, actors)

    assert [text for shard in shards for text in shard] == texts
    assert max(len(shard) for shard in shards) <= 1024
    assert max(len(shard[-1]) * len(shard) for shard in shards) <= 1 << 18
    assert len(shards) >= 4 * actors


@pytest.mark.ray
def test_two_actors_are_placed_one_per_gpu_and_agree_with_one_on_a_cpu(tmp_path: Path) -> None:
    # Its own Ray, with GPUs that are counted but not there.
    program = """
        import json, sys
        import numpy as np, ray, torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
        from mtrec import storage
        from mtrec.config import (Config, RayConfig)
        from mtrec.rayrun import connect
        from mtrec.text.embed import embed, unique_texts
        from mtrec.text.store import EmbeddingStore

        folder = sys.argv[1]
        words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *map(str, range(50))])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
        ).save_pretrained(folder + "/bert")
        torch.manual_seed(0)
        BertModel(BertConfig(
            vocab_size=52, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, initializer_range=0.2,
        )).save_pretrained(folder + "/bert")

        ray.init(
            address="local", num_cpus=4, num_gpus=2, include_dashboard=False,
            object_store_memory=100 << 20, log_to_driver=False,
        )
        connect(RayConfig())
        # Both actors are there before the first batch: else one might do it all.
        ray.data.DataContext.get_current().wait_for_min_actors_s = 200
        dataset = folder + "/dataset"

        def run(place, **text):
            config = Config.model_validate({
                "data": {"interactions": {"path": "x"}, "items": {
                    "path": "y", "columns": {"title": {"kind": "text"}}}},
                "text": {"item_template": "{title}", "encoder": folder + "/bert", **text},
                "tasks": [{"name": "next", "kind": "retrieval"}],
            })
            manifest = embed(config, dataset=dataset, path=folder + place, key="k", parents={})
            store = EmbeddingStore(folder + place, manifest.details["encoder"]["id"])
            return manifest.details, store.lookup(unique_texts(dataset))

        two, on_two = run("/gpus", actors=2)
        one, on_one = run("/cpu", device="cpu", actors=1)
        print(json.dumps({"two": two, "one": one, "difference": float(abs(on_two - on_one).max()),
                          "norm": float(np.linalg.norm(on_one, axis=1).min())}))
        ray.shutdown()
    """
    numbers = np.random.default_rng(0)
    write_dataset(
        tmp_path,
        [" ".join(map(str, numbers.integers(0, 50, numbers.integers(2, 50)))) for _ in range(128)],
    )

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )

    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert [actor["gpu_ids"] for actor in result["two"]["per_actor"]] == [["0"], ["1"]]
    assert result["two"]["actors"] == 2
    assert (result["one"]["actors"], result["one"]["per_actor"][0]["gpu_ids"]) == (1, [])
    assert result["two"]["embedded"] == result["one"]["embedded"] == 128
    assert result["difference"] < 1e-6
    assert result["norm"] == pytest.approx(1.0, abs=1e-5)
