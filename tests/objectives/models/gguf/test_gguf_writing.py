"""`.gguf` files hold a model as llama.cpp and transformers read it, or are not written at all."""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from objectives.models.base import ModelError
from objectives.models.gguf import writing
from objectives.models.gguf.ggml_types import GgmlType
from objectives.models.gguf.ggml_weights import quantised_weights
from objectives.models.gguf.loading import load_gguf
from objectives.models.gguf.writing import permute_rotary, write_gguf_model
from objectives.models.gptq.four_bit import FourBitLinear, quantise_linears
from tests.objectives.byte_level_llama import (
    LLAMA3_ROPE,
    make_byte_level_llama,
    pocket_tokenizer,
    random_ids,
)

IDS = random_ids(2, 24)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return pocket_tokenizer()


def field(path: Path, key: str) -> Any:
    found = gguf.GGUFReader(path).get_field(key)
    return None if found is None else found.contents()


def assert_read_back(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: Path, ggml_type: GgmlType
) -> None:
    """Write a model; what is read must have, bit by bit, the weights that quantising gives."""
    write_gguf_model(model, tokenizer, path, ggml_type=ggml_type)
    assert [file.name for file in path.parent.iterdir()] == [path.name]

    read, _ = load_gguf(path, dtype=torch.float32)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    matrices = {name for name in types if "norm" not in name}
    assert {types[name].upper() for name in matrices} == {ggml_type.upper()}
    assert {types[name] for name in types.keys() - matrices} == {"F32"}
    with quantised_weights(model, ggml_type):
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert read.state_dict().keys() == expected.keys()
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "ggml_type", ["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
)
def test_a_file_read_back_has_just_the_weights_that_quantising_gives(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ggml_type: GgmlType
) -> None:
    assert_read_back(make_byte_level_llama(), tokenizer, tmp_path / "model.gguf", ggml_type)


@pytest.mark.extras
@pytest.mark.parametrize("ggml_type", ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"])
def test_k_quants_are_read_back_too(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ggml_type: GgmlType
) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp; pip install -e '.[gguf]'")
    model = make_byte_level_llama(hidden_size=256, intermediate_size=256)
    assert_read_back(model, tokenizer, tmp_path / "model.gguf", ggml_type)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"head_dim": 32},
        {"rope_parameters": LLAMA3_ROPE},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
    ],
)
def test_a_file_read_back_computes_the_same(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, changes: dict[str, Any]
) -> None:
    model = make_byte_level_llama(**changes)
    write_gguf_model(model, tokenizer, tmp_path / "model.gguf", ggml_type="f32")
    read, _ = load_gguf(tmp_path / "model.gguf", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(read(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_sliding_window_is_the_context_of_the_file(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = MistralConfig(**make_byte_level_llama().config.to_dict() | {"sliding_window": 24})
    model = MistralForCausalLM(config).eval()
    write_gguf_model(model, tokenizer, tmp_path / "model.gguf", ggml_type="f32")
    assert field(tmp_path / "model.gguf", "llama.context_length") == 24
    read, _ = load_gguf(tmp_path / "model.gguf", dtype=torch.float32)
    longer = random_ids(2, 25)
    with torch.no_grad():
        torch.testing.assert_close(read(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(read(longer).logits[:, -1], model(longer).logits[:, -1])


def test_biases_are_written_in_the_order_of_their_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_byte_level_llama(attention_bias=True)
    write_gguf_model(model, tokenizer, tmp_path / "model.gguf", ggml_type="f32")
    tensors = {
        tensor.name: torch.from_numpy(tensor.data.copy())
        for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors
    }
    for name, heads, module in (
        ("blk.1.attn_q", 4, model.model.layers[1].self_attn.q_proj),
        ("blk.1.attn_k", 2, model.model.layers[1].self_attn.k_proj),
    ):
        rows = permute_rotary(torch.arange(len(module.bias)), heads)
        assert torch.equal(tensors[f"{name}.weight"], module.weight[rows])
        assert torch.equal(tensors[f"{name}.bias"], module.bias[rows])
    value = model.model.layers[1].self_attn.v_proj
    assert torch.equal(tensors["blk.1.attn_v.bias"], value.bias)
    with pytest.raises(ModelError, match=r"has biases \(blk.*which transformers does not read"):
        load_gguf(tmp_path / "model.gguf", dtype=torch.float32)


def test_scaled_frequencies_survive_being_written_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_byte_level_llama(rope_parameters=LLAMA3_ROPE)
    write_gguf_model(model, tokenizer, tmp_path / "one.gguf", ggml_type="f32")
    read, its_tokenizer = load_gguf(tmp_path / "one.gguf", dtype=torch.float32)
    write_gguf_model(read, its_tokenizer, tmp_path / "two.gguf", ggml_type="f32")
    one, two = (
        {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / name).tensors}
        for name in ("one.gguf", "two.gguf")
    )
    assert one["rope_freqs.weight"].max() == pytest.approx(8)
    assert two["rope_freqs.weight"] == pytest.approx(one["rope_freqs.weight"])


def test_a_gptq_checkpoint_is_written_with_its_dequantised_weights(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_byte_level_llama()
    quantise_linears(model, group_size=32)
    write_gguf_model(model, tokenizer, tmp_path / "model.gguf", ggml_type="f32")
    read, _ = load_gguf(tmp_path / "model.gguf", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(read(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_of_a_gptq_checkpoint_one_weight_is_dense_at_a_time(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    tied: bool,
) -> None:
    model = make_byte_level_llama(tie_word_embeddings=tied)
    quantise_linears(model, group_size=32)
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def count() -> None:
        alive.append(sum(each() is not None for each in made))

    def dequantise(module: FourBitLinear, dtype: torch.dtype) -> Tensor:
        count()
        values = dequantise_it(module, dtype)
        made.append(weakref.ref(values))
        return values

    def permute(rows: Tensor, heads: int) -> Tensor:
        values = permute_rotary(rows, heads)
        made.append(weakref.ref(values))
        return values

    dequantise_it = FourBitLinear.dequantise
    monkeypatch.setattr(FourBitLinear, "dequantise", dequantise)
    monkeypatch.setattr(writing, "permute_rotary", permute)
    write_gguf_model(model, tokenizer, tmp_path / "model.gguf", ggml_type="q4_0")
    # Two layers of seven modules; whenever one is made dense, none of those before it is left.
    assert alive == [0] * 14
    count()
    assert alive[-1] == 0
    assert len(made) == 14 + 4


def test_rows_are_put_in_the_order_of_rotated_neighbours() -> None:
    # Two heads of four rows: a head's rows 0 and 1 are rotated with its rows 2 and 3.
    rows = torch.arange(8)[:, None]
    assert permute_rotary(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_tokenizer_is_there_for_llama_cpp_and_as_it_is(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "model.gguf"
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}"
    write_gguf_model(make_byte_level_llama(vocab_size=1540), tokenizer, path)

    tokens = field(path, "tokenizer.ggml.tokens")
    assert tokens[:3] == ["<pad>", "<s>", "</s>"]
    assert tokens[1536:] == ["[PAD1536]", "[PAD1537]", "[PAD1538]", "[PAD1539]"]
    assert field(path, "tokenizer.ggml.token_type")[:4] == [3, 3, 3, 1]
    assert field(path, "tokenizer.ggml.token_type")[-1] == 5
    assert field(path, "tokenizer.ggml.bos_token_id") == 1
    assert field(path, "tokenizer.ggml.add_bos_token") is True
    assert field(path, "tokenizer.ggml.add_eos_token") is False
    assert field(path, "tokenizer.chat_template") == tokenizer.chat_template

    _, read = load_gguf(path, dtype=torch.float32)
    assert read.padding_side == "left"
    assert read.chat_template == tokenizer.chat_template
    assert (read.pad_token_id, read.bos_token_id, read.eos_token_id) == (0, 1, 2)
    for text in ("Question: Who won in 2023?\nAnswer:", "Joe: née\n\n  x"):
        ids = tokenizer(text).input_ids
        assert read(text).input_ids == ids
        assert read.decode(ids) == tokenizer.decode(ids)


def byte_level(split: pre_tokenizers.PreTokenizer, *merges: tuple[str, str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {each: place for place, each in enumerate(alphabet)}
    for merge in merges:
        vocabulary["".join(merge)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = split
    return tokenizer


DIGITS = ("1", "2"), ("12", "3"), ("123", "4")


@pytest.mark.parametrize(
    ("split", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
            "smollm",
        ),
        (
            pre_tokenizers.Sequence(
                [
                    # As in Llama 3: at most three digits together.
                    pre_tokenizers.Split(
                        Regex(
                            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                        ),
                        "isolated",
                    ),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            "llama-bpe",
        ),
    ],
)
def test_the_way_to_split_text_is_found(
    tmp_path: Path, split: pre_tokenizers.PreTokenizer, name: str
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(split, *DIGITS))
    write_gguf_model(make_byte_level_llama(), tokenizer, tmp_path / "model.gguf")
    assert field(tmp_path / "model.gguf", "tokenizer.ggml.pre") == name
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert field(tmp_path / "model.gguf", "tokenizer.ggml.merges") == [
        " ".join(merge) for merge in merges
    ]


def qwen() -> PreTrainedModel:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=1536, **sizes, **heads))


def spaced() -> PreTrainedTokenizerFast:
    # Splits at white space alone, which no tokenizer that llama.cpp names does.
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(split, *DIGITS))


def whole_words() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def refused_models() -> dict[str, Callable[[], PreTrainedModel]]:
    return {
        "model_type 'qwen2'.*convert_hf_to_gguf.py": qwen,
        "hidden_act 'gelu'": lambda: make_byte_level_llama(hidden_act="gelu"),
        "rope_type 'yarn'": lambda: make_byte_level_llama(
            rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
        ),
        "token 1535, and the model only 100": lambda: make_byte_level_llama(vocab_size=100),
        r"rows of 48 .* multiple of 32": lambda: make_byte_level_llama(intermediate_size=48),
    }


@pytest.mark.parametrize("said", refused_models())
def test_a_model_that_a_file_cannot_hold_is_refused_and_leaves_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        write_gguf_model(
            refused_models()[said](), tokenizer, tmp_path / "model.gguf", ggml_type="q8_0"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [spaced, whole_words])
def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(
    tmp_path: Path, make: Callable[[], PreTrainedTokenizerFast]
) -> None:
    with pytest.raises(ModelError, match="a byte-level BPE that splits text as gpt-2"):
        write_gguf_model(make_byte_level_llama(), make(), tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []
