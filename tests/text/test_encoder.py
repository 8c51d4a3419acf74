"""Encoders of language models: pooling, batches, precision, known values."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from mtrec.config import TextConfig
from mtrec.errors import ConfigError
from mtrec.text.encoder import build_encoder, describe_encoder, plan_batches, pool

TEXTS = [
    "red fish",
    "blue",
    "one fish two fish red fish blue fish",
    "two red",
    "fish fish fish fish fish fish fish fish fish fish fish fish",
    "one",
]


def save_wordpiece_tokenizer(folder: Path) -> int:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "fish", "one", "two", "##s"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return len(words)


def save_byte_tokenizer(folder: Path) -> int:
    """Save a tokenizer as decoders have it: bytes, an end token, no padding token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: index for index, char in enumerate([*alphabet, "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", padding_side="left"
    ).save_pretrained(folder)
    return len(vocabulary)


def save_bert(folder: Path) -> Path:
    size = save_wordpiece_tokenizer(folder)
    torch.manual_seed(1)
    BertModel(
        BertConfig(
            vocab_size=size,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            initializer_range=0.5,
        )
    ).save_pretrained(folder)
    return folder


def save_decoder(folder: Path, kind: str) -> Path:
    size = save_byte_tokenizer(folder)
    torch.manual_seed(2)
    if kind == "llama":
        LlamaModel(
            LlamaConfig(
                vocab_size=size,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=128,
                initializer_range=0.5,
            )
        ).save_pretrained(folder)
    else:
        # Positions are absolute here: padding on the left would shift them.
        GPT2Model(
            GPT2Config(
                vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=128,
                bos_token_id=size - 1, eos_token_id=size - 1, initializer_range=0.5,
            )
        ).save_pretrained(folder)  # fmt: skip
    return folder


def encode_by_hand(folder: Path, text: str, pooling: str) -> np.ndarray:
    """Encode one text alone, without padding, token by token."""
    model = AutoModel.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    with torch.inference_mode():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
    if pooling == "mean":
        vector = np.zeros(hidden.shape[1], dtype=np.float64)
        for row in hidden:
            vector += row / len(hidden)
    else:
        vector = hidden[0] if pooling == "cls" else hidden[-1]
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_bert_in_batches_equals_each_text_alone_pooled_by_hand(bert: Path, pooling: str) -> None:
    config = TextConfig(encoder=str(bert), pooling=pooling, batch_tokens=64)

    vectors = build_encoder(config).encode(TEXTS)

    expected = np.stack([encode_by_hand(bert, text, pooling) for text in TEXTS])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_decoder_without_padding_token_equals_each_text_alone(
    decoder: Path, pooling: str
) -> None:
    config = TextConfig(encoder=str(decoder), pooling=pooling, batch_tokens=64)

    vectors = build_encoder(config).encode(TEXTS)

    expected = np.stack([encode_by_hand(decoder, text, pooling) for text in TEXTS])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_an_encoder_decoder_gives_its_encoder(tmp_path: Path) -> None:
    size = save_wordpiece_tokenizer(tmp_path)
    torch.manual_seed(3)
    model = T5Model(
        T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()
    model.save_pretrained(tmp_path)

    vector = build_encoder(TextConfig(encoder=str(tmp_path))).encode(["red fish"])[0]

    with torch.inference_mode():
        hidden = model.encoder(torch.tensor([[2, 4, 6, 3]])).last_hidden_state[0]
    mean = hidden.mean(0) / hidden.mean(0).norm()
    np.testing.assert_allclose(vector, mean.numpy(), atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [64, 200, 4096])
def test_a_vector_does_not_depend_on_its_batch(bert: Path, batch_tokens: int) -> None:
    config = TextConfig(encoder=str(bert), batch_tokens=batch_tokens)
    order = np.random.default_rng(0).permutation(len(TEXTS) * 5)
    texts = [f"{text} {'two ' * repeat}" for text in TEXTS for repeat in range(5)]

    straight = build_encoder(config).encode(texts)
    shuffled = build_encoder(config).encode([texts[row] for row in order])

    np.testing.assert_allclose(shuffled, straight[order], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(straight, axis=1), 1.0, atol=1e-6)


def test_padding_may_be_on_either_side_for_pooling() -> None:
    hidden = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
    # First row: tokens 0, 1, padded right; second row: tokens 2, 3, padded left.
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])

    assert pool(hidden, mask, "last").tolist() == [[3, 4, 5], [21, 22, 23]]
    assert pool(hidden, mask, "cls").tolist() == [[0, 1, 2], [18, 19, 20]]
    assert pool(hidden, mask, "mean").tolist() == [[1.5, 2.5, 3.5], [19.5, 20.5, 21.5]]


def test_an_empty_text_gives_a_zero_row(bert: Path) -> None:
    vectors = build_encoder(TextConfig(encoder=str(bert))).encode(["", "red", ""])

    assert np.linalg.norm(vectors, axis=1).tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert build_encoder(TextConfig(encoder=str(bert))).encode([]).shape == (0, 16)


def test_a_text_is_cut_at_the_shorter_of_max_tokens_and_the_models_limit(bert: Path) -> None:
    short = build_encoder(TextConfig(encoder=str(bert), max_tokens=8))
    long = build_encoder(TextConfig(encoder=str(bert), max_tokens=512))

    # Of 8 tokens two are [CLS] and [SEP]; the model has 32 positions.
    np.testing.assert_array_equal(*short.encode(["red " * 6, "red " * 6 + "blue"]))
    np.testing.assert_array_equal(*long.encode(["red " * 30, "red " * 30 + "blue"]))
    first, second = long.encode(["red " * 6, "red " * 6 + "blue"])
    assert first @ second < 0.999


def test_unknown_tokens_are_counted_without_the_added_ones(bert: Path) -> None:
    encoder = build_encoder(TextConfig(encoder=str(bert)))

    counts = encoder.count_tokens(["red zebra", "ape", "", "blue fish"])

    assert counts.total.tolist() == [2, 1, 0, 2]
    assert counts.unknown.tolist() == [1, 1, 0, 0]
    assert encoder.unknown_fraction(["red zebra", "ape", "", "blue fish"]) == 2 / 5
    assert encoder.unknown_fraction([""]) == 0.0


def test_the_id_follows_weights_tokenizer_pooling_length_and_precision(tmp_path: Path) -> None:
    config = TextConfig(encoder=str(save_bert(tmp_path)))
    first = describe_encoder(config)
    changes = ({"pooling": "cls"}, {"max_tokens": 9}, {"precision": "bfloat16"})
    others = [describe_encoder(config.model_copy(update=change)) for change in changes]
    vocabulary = tmp_path / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"fish"', '"bird"'))
    others.append(describe_encoder(config))
    torch.manual_seed(9)
    BertModel.from_pretrained(tmp_path).apply(
        lambda module: [p.data.add_(0.1) for p in module.parameters(recurse=False)]
    ).save_pretrained(tmp_path)
    others.append(describe_encoder(config))

    assert len({first.id, *(other.id for other in others)}) == 6
    assert others[2].model_id == first.model_id  # precision alone is the same model
    assert (first.dim, first.pooling, first.precision) == (16, "mean", "float32")


def test_precision_auto_is_bfloat16_on_a_gpu(bert: Path) -> None:
    config = TextConfig(encoder=str(bert))

    assert describe_encoder(config, device="cuda").precision == "bfloat16"
    assert describe_encoder(config, device="cpu").precision == "float32"


def test_bfloat16_vectors_are_near_the_float32_ones(bert: Path) -> None:
    config = TextConfig(encoder=str(bert))

    exact = build_encoder(config).encode(TEXTS)
    rounded = build_encoder(config.model_copy(update={"precision": "bfloat16"})).encode(TEXTS)

    assert rounded.dtype == np.float32
    assert (exact * rounded).sum(1).min() > 0.999
    assert np.abs(exact - rounded).max() > 1e-5


def test_a_folder_with_broken_weights_is_a_configuration_error(tmp_path: Path) -> None:
    save_bert(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")

    with pytest.raises(ConfigError, match="does not load"):
        build_encoder(TextConfig(encoder=str(tmp_path)))


def test_a_folder_whose_weights_lack_a_layer_is_a_configuration_error(tmp_path: Path) -> None:
    save_bert(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )

    with pytest.raises(ConfigError, match=r"the weights lack encoder\.layer\.2"):
        build_encoder(TextConfig(encoder=str(tmp_path)))


def test_batches_stay_within_the_budget_and_hold_every_text_once() -> None:
    lengths = np.random.default_rng(0).integers(0, 60, size=500)

    batches = plan_batches(lengths.tolist(), 128)

    assert all(lengths[batch].max() * len(batch) <= 128 for batch in batches)
    assert sorted(np.concatenate(batches).tolist()) == np.flatnonzero(lengths).tolist()
    # Texts of like length: padding is a few per cent.
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded / lengths.sum() < 1.05


def test_a_text_above_the_budget_is_alone() -> None:
    assert [batch.tolist() for batch in plan_batches([300, 2, 300], 100)] == [[1], [0], [2]]
    assert plan_batches([], 100) == []
    assert plan_batches([0, 0], 100) == []


@pytest.mark.slow
def test_the_bundled_model_equals_sentence_transformers() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from mtrec.text.models import find_model

    texts = [
        "Toy Story (1995) | Animation, Comedy",
        "Heat",
        "liked: Alien; Aliens; " * 60,
        "科幻电影",
    ]
    peer = sentence_transformers.SentenceTransformer(
        str(find_model("all-minilm-l6-v2")), device="cpu"
    )

    vectors = build_encoder(TextConfig()).encode(texts)

    np.testing.assert_allclose(vectors, peer.encode(texts), atol=1e-5)


def test_the_bundled_model_puts_paraphrases_together() -> None:
    encoder = build_encoder(TextConfig())

    cat, paraphrase, physics = encoder.encode(
        ["The cat sat on the mat.", "A cat is sitting on a rug.", "Lecture notes on quarks"]
    )

    # sentence-transformers 6.2 gives 0.72963 for the pair.
    assert float(cat @ paraphrase) == pytest.approx(0.72963, abs=1e-4)
    assert float(cat @ physics) < 0.2
    assert encoder.dim == 384
