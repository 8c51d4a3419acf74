"""A run's file: every wrong key, value or combination is refused by name, the dump loads back."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_config import tree

from mtrec.config import ServeConfig
from mtrec.configfile import dump_config, load_config, parse_config, parse_serving
from mtrec.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "jobs" / "configs").rglob("*.yaml"))


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


# ---- serving without a file ---------------------------------------------------------------------


def test_serving_without_a_file_takes_overrides_of_its_own_sections() -> None:
    serving = parse_serving(["serve.follow_s=2", "serve.max_k=50", "ray.num_cpus=4"])

    assert (serving.serve.follow_s, serving.serve.max_k, serving.ray.num_cpus) == (2.0, 50, 4)
    assert parse_serving([]).serve == ServeConfig()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("serve.folow_s=2", 'unknown key serve.folow_s; did you mean "follow_s"'),
        ("serve.port=99999", "serve.port: .*65535"),
        ("train.epochs=3", "without --config only keys of serve and ray"),
        ("serve", "expected key=value"),
    ],
)
def test_a_wrong_override_of_serving_is_refused_by_name(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_serving([override])


# ---- what is told about a mistake ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        ("train", {"epoch": 3}, 'unknown key train.epoch; did you mean "epochs"?'),
        ("trian", {}, 'unknown key trian; did you mean "train"?'),
        ("train", {"zzz": 3}, "unknown key train.zzz; known keys: balance, batch_size, clip_norm"),
        (
            "model",
            {"history": {"kind": "sequence", "num_head": 2}},
            'unknown key model.history.num_head; did you mean "num_heads"?',
        ),
        (
            "model",
            {"experts": {"kind": "ple", "num_level": 2}},
            'unknown key model.experts.num_level; did you mean "num_levels"?',
        ),
        (
            "data",
            {"interactions": {"path": "x", "columns": {"r": {"kind": "number", "mni": 1}}}},
            'unknown key data.interactions.columns.r.mni; did you mean "min"?',
        ),
        (
            "tasks",
            [{"name": "a", "kind": "retrieval", "wieght": 1}],
            'unknown key tasks.0.wieght; did you mean "weight"?',
        ),
        (
            "data",
            {"interactions": {"path": "x"}, "split": {"method": "random", "tset": 0.1}},
            'unknown key data.split.tset; did you mean "test"?',
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    section: str, value: object, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree(**{section: value}), name="run.yaml")

    assert f"run.yaml: {told}" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train": {"epochs": 0}}, "train.epochs: Input should be greater than or equal to 1"),
        ({"train": {"epochs": "many"}}, "found 'many'"),
        ({"serve": {"port": 70000}}, "serve.port: Input should be less than or equal to 65535"),
        ({"tasks": []}, "tasks: "),
        ({"tasks": [{"name": "a", "kind": "retrieval"}] * 2}, "names must differ"),
        ({"tasks": [{"name": "like", "kind": "binary", "label": "rating > 3"}]}, "exactly one"),
        ({"tasks": [{"name": "rank", "kind": "retrieval"}]}, '"rank" is a column of predictions/'),
        (
            {
                "tasks": [
                    {"name": "a", "kind": "retrieval"},
                    {"name": "b", "kind": "binary", "label": "stars > 3"},
                ]
            },
            'tasks.b.label: "stars" is no number column of data.interactions.columns; '
            "there are ['rating']",
        ),
        (
            {
                "tasks": [
                    {"name": "a", "kind": "retrieval"},
                    {"name": "b", "kind": "binary", "label": "rating ~ 3"},
                ]
            },
            '"rating ~ 3" is no label',
        ),
        (
            {"text": {"item_template": "{title} {plot}"}},
            "text.item_template uses \"{plot}\"; the table has ['genres', 'title']",
        ),
        ({"score": {"weights": {"click": 1}}}, 'score.weights: no task is called "click"'),
        ({"train": {"batch_size": 10, "num_workers": 3}}, "must be a multiple of"),
        ({"model": {"embedding_dim": 10, "history": {"num_heads": 4}}}, "must be a multiple of"),
        ({"model": {"next_item": {}, "history": {"kind": "set"}}}, "next_item is for events in"),
        ({"model": {"next_item": {}, "item_item": {}}}, "exclude each other"),
        (
            {"model": {"item_item": {"amount": "ratings"}}},
            'model.item_item.amount: "ratings" is no number column',
        ),
        (
            {"model": {"experts": {"kind": "mmo"}}},
            "model.experts: expected a section whose kind is one of shared_bottom, mmoe, ple",
        ),
        (
            {"model": {"next_item": True}},
            "model.next_item: expected keys and their values, or {} for",
        ),
        (
            {"score": {"filter": {"genres": {"mn": 3}}}},
            "score.filter.genres: expected a value, a list of values, or min and max of a number, "
            "found {'mn': 3}",
        ),
        ({"serve": {"min_replicas": 3, "max_replicas": 2}}, "is below min_replicas 3"),
        ({"serve": {"target_ongoing_requests": 99}}, "it would never scale up"),
        ({"data": {"items": None}}, "missing key data.interactions"),
    ],
)
def test_a_wrong_value_or_combination_is_refused_with_the_reason(
    change: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree(**change))

    assert told in str(caught.value)


def test_all_problems_are_told_at_once_up_to_five() -> None:
    wrong = tree(train={"epochs": 0, "patience": 0}, serve={"port": 0})
    with pytest.raises(ConfigError) as caught:
        parse_config(wrong)
    assert len(str(caught.value).splitlines()) == 3

    many = tree(run={f"x{number}": 1 for number in range(8)})
    with pytest.raises(ConfigError, match=r"\.\.\. and 3 more"):
        parse_config(many)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: [", "is not valid YAML"),
        (b"- 1", "must hold sections such as data and tasks"),
        (b"", "must hold sections such as data and tasks"),
        (b"\xff\xfe\xff", "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=told):
        load_config(path)


def test_a_missing_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the path of a YAML file"):
        load_config(tmp_path / "none.yaml")


# ---- overrides ----------------------------------------------------------------------------------


def test_overrides_reach_sections_lists_by_number_and_tasks_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, tree())

    config = load_config(
        path,
        [
            "train.epochs=3",
            "tasks.0.weight=0.5",
            "tasks.like.weight=0.25",
            "data.interactions.columns.rating.max=6",
            "evaluate.baselines=[random, ease]",
            "text.item_template='{title}'",
            "run.workdir=runs/a=b",
        ],
    )

    assert config.train.epochs == 3
    assert [task.weight for task in config.tasks] == [0.5, 1.0, 0.25]
    rating = config.data.interactions.columns["rating"]
    assert rating.kind == "number"
    assert rating.max == 6
    assert config.evaluate.baselines == ["random", "ease"]
    assert config.text.item_template == "{title}"
    assert config.run.workdir == "runs/a=b"


def test_the_last_override_wins(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, tree()), ["run.seed=1", "run.seed=2"])

    assert config.run.seed == 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epochs", "expected key=value"),
        ("train..epochs=1", "expected key=value"),
        ("=1", "expected key=value"),
        ("train.epochs=[", "not valid YAML"),
        ("tasks.click.weight=1", 'the list has no entry "click"'),
        ("tasks.7.weight=1", 'the list has no entry "7"'),
        ("data.interactions.path.x=1", '"data.interactions.path" is a plain value'),
        ("train.epoch=1", 'unknown key train.epoch; did you mean "epochs"?'),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, tree()), [override])

    assert told in str(caught.value)


# ---- dump and load ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads_and_its_dump_loads_as_the_same(
    path: Path, tmp_path: Path
) -> None:
    config = load_config(path)
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")

    assert load_config(tmp_path / "config.yaml") == config


@given(
    seed=st.integers(0, 2**31 - 1),
    rate=st.floats(1e-9, 10.0),
    workdir=st.text(
        st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20
    ),
    separator=st.sampled_from(["|", ";", "::", "、"]),
)
def test_dump_and_load_are_inverse(seed: int, rate: float, workdir: str, separator: str) -> None:
    content = tree(run={"seed": seed, "workdir": workdir}, train={"learning_rate": rate})
    content["data"]["items"]["columns"]["genres"]["separator"] = separator
    config = parse_config(content)

    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_a_key_below_a_section_called_like_a_kind_is_named_whole() -> None:
    tree = {"data": {"interactions": {"path": "x"}}, "tasks": [], "text": {"item_templete": "x"}}
    with pytest.raises(ConfigError, match=r"unknown key text\.item_templete; did you mean"):
        parse_config(tree)


def test_a_misspelt_key_comes_before_the_missing_one() -> None:
    tree = {"data": {"interactions": {"path": "x"}}, "task": []}
    with pytest.raises(ConfigError, match=r'unknown key task; did you mean "tasks"\?\nmissing'):
        parse_config(tree)


@pytest.mark.parametrize("value", ["2026-11-25", "2026-11-25T12:00:00+08:00", "1764000000"])
def test_a_moment_may_be_a_day_a_time_or_seconds_and_is_written_back(tmp_path, value):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree()))
    config = load_config(path, [f"data.interactions.latest_time={value}"])
    assert config.data.interactions.latest_time is not None
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize("key", ["refit", "use_gpu"])
def test_no_is_a_word_and_only_true_and_false_are_booleans(tmp_path: Path, key: str) -> None:
    path = tmp_path / "run.yaml"
    words = f"train: {{{key}: no}}\nscore: {{explain: true}}\n"
    rest = {name: value for name, value in tree().items() if name not in ("train", "score")}
    path.write_text(yaml.safe_dump(rest) + words)
    config = load_config(path)
    assert (getattr(config.train, key), config.score.explain) == ("no", True)
    config = load_config(path, [f"train.{key}=no", "score.explain=False"])
    assert (getattr(config.train, key), config.score.explain) == ("no", False)
    # A flag takes the words as well.
    assert load_config(path, ["score.explain=no"]).score.explain is False


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("run: {seed: 1}\ntext: {encoder: hashing}\nrun: {seed: 2}\n")
    with pytest.raises(ConfigError, match=r'the key "run" comes twice.*line 3'):
        load_config(path)


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("data.split", {"method": "kfold"}, 'data.split.method: "kfold" is unknown; did you mean'),
        ("run", {"workdir": "s3:/bucket/run"}, 'run: workdir "s3:/bucket/run" looks like a URI'),
        ("train", {"monitor": "ndcg"}, "there are .'next/ndcg@10', 'next/hr@10', 'rating/rmse'"),
        (
            "train",
            {"softmax": {"kind": "sampled", "negatives": 3}},
            "unknown key train.softmax.neg",
        ),
        ("data.interactions.columns.rating", {"kind": "number", "min": 9, "max": 5}, "min 9 is ab"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(
    section: str, value: dict[str, Any], message: str
) -> None:
    config = tree()
    node: Any = config
    *parents, last = section.split(".")
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = value
    with pytest.raises(ConfigError, match=message):
        parse_config(config)


def test_amounts_have_to_be_0_or_more() -> None:
    config = tree(model={"item_item": {"amount": "rating"}})
    column = config["data"]["interactions"]["columns"]["rating"]
    column["min"] = 0
    assert parse_config(config).model.item_item.amount == "rating"
    for least in (-1, None):
        column["min"] = least
        with pytest.raises(ConfigError, match="has to be 0 or more; say so by data"):
            parse_config(config)


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("12:30", "12:30"),
    ],
)
def test_dates_and_times_are_words(tmp_path: Path, words: str, read: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree()))
    config = load_config(path, [f"data.interactions.path={words}"])
    assert config.data.interactions.path == read
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("words", ["010", "1e1", "+10."])
def test_numbers_are_decimal(tmp_path: Path, words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree()))
    assert load_config(path, [f"train.clip_norm={words}"]).train.clip_norm == 10.0


@pytest.mark.parametrize("word", ["010", "1e3", "2024-01-01", "no", "0x1f", "~", "1_0"])
def test_words_that_look_like_something_else_load_back(tmp_path: Path, word: str) -> None:
    config = parse_config(tree(run={"workdir": word}))
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "run.yaml") == config


@pytest.mark.parametrize("number", [".nan", ".inf"])
def test_numbers_are_finite(tmp_path: Path, number: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree()))
    with pytest.raises(ConfigError, match=r"train\.learning_rate.*finite"):
        load_config(path, [f"train.learning_rate={number}"])
