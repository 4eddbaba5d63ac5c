"""Loading a base model: where it is looked for, and what is said when it cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoXConfig,
    PreTrainedModel,
    Qwen2Config,
    dynamic_module_utils,
)

from data.prompts import ChatFrame, Prompt, put_question
from data.recipes import GREEDY, Recipe
from objectives.answers.generate import generate
from objectives.answers.request import Request
from objectives.bank import Bank
from objectives.models import load
from objectives.models.base import BaseModel, ModelError, TokenRules
from objectives.models.gguf.writing import write_gguf_model
from objectives.models.gptq.checkpoint import load_gptq
from objectives.models.gptq.four_bit import FourBitLinear
from objectives.models.gptq.writing import GptqLayoutName, save_gptq
from objectives.models.load import Precision, default_precision, load_base_model
from objectives.models.loading import Loading
from tests.objectives.odd_tokenizers import byte_level
from tests.objectives.own_code import bring_code
from tests.objectives.tiny_llama import make_tiny_llama

POCKET = Path(str(files("data") / "pocket"))


def test_a_loaded_model_is_frozen_and_evaluates() -> None:
    base = load_base_model("pocket", device="cpu")
    assert not base.model.training
    assert not [p for p in base.model.parameters() if p.requires_grad]
    assert base.model.dtype == torch.float32
    assert base.tokenizer.padding_side == "left"


def test_a_folder_is_loaded_like_the_pocket_model_and_has_its_digest(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(POCKET, folder)
    assert load_base_model(str(folder)).digest == load_base_model("pocket").digest


def test_other_weights_have_another_digest(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(POCKET, folder)
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert load_base_model(str(folder)).digest != load_base_model("pocket").digest


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder \(no config.json in it\)"):
        load_base_model(str(tmp_path))


def _pickled(tmp_path: Path, weights: object) -> Path:
    """Return a copy of the pocket model whose weights are pickled."""
    folder = Path(shutil.copytree(POCKET, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_refused_unless_they_are_asked_for(tmp_path: Path) -> None:
    plain = load_base_model("pocket", device="cpu")
    folder = _pickled(tmp_path, plain.model.state_dict())
    with pytest.raises(ModelError, match=r"only pytorch_model.bin; .* loading.pickled_weights"):
        load_base_model(str(folder))
    base = load_base_model(str(folder), loading=Loading(pickled_weights=True))
    for name, weight in base.model.state_dict().items():
        assert torch.equal(weight, plain.model.state_dict()[name])
    torch.save(plain.model.half().state_dict(), folder / "pytorch_model.bin")
    again = load_base_model(str(folder), loading=Loading(pickled_weights=True))
    assert again.digest != base.digest


class Trap:
    """What a pickled file can do."""

    def __init__(self, sprung: Path) -> None:
        self._sprung = sprung

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, (str(self._sprung),)


def test_pickled_code_never_runs(tmp_path: Path) -> None:
    folder = _pickled(tmp_path, {"weight": Trap(tmp_path / "sprung")})
    with pytest.raises(ModelError, match=r"cannot be loaded: .*pickled weights contain more than"):
        load_base_model(str(folder), loading=Loading(pickled_weights=True))
    assert not (tmp_path / "sprung").exists()


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    folder = shutil.copytree(POCKET, tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"it has no \*\.safetensors weights; pickled"):
        load_base_model(str(folder), loading=Loading(pickled_weights=True))


def test_a_model_that_is_nowhere_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="model: 'no/such-model' cannot be loaded"):
        load_base_model("no/such-model")


def test_code_that_comes_with_a_model_runs_only_if_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = Path(shutil.copytree(POCKET, tmp_path / "own"))
    bring_code(folder)
    with pytest.raises(ModelError, match=r"could do anything on this machine; .* = true in the"):
        load_base_model(str(folder))
    base = load_base_model(str(folder), loading=Loading(trust_remote_code=True))
    assert type(base.model).__name__ == "OwnModel"


def test_a_gptq_checkpoint_of_a_model_with_its_own_code_is_read_where_that_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    pocket = load_base_model("pocket", device="cpu")
    folder = tmp_path / "own"
    save_gptq(pocket.model, pocket.tokenizer, folder, group_size=128, layout="current")
    plain = load_base_model(str(folder), device="cpu")
    bring_code(folder)
    with pytest.raises(ModelError, match=r"loading\.trust_remote_code = true in the study file"):
        load_base_model(str(folder), device="cpu")
    loading = Loading(trust_remote_code=True)
    base = load_base_model(str(folder), device="cpu", loading=loading)
    assert type(base.model).__name__ == "OwnModel"
    assert sum(isinstance(module, FourBitLinear) for module in base.model.modules()) == 4 * 7
    token_ids = torch.tensor([base.encode_prompt("Who won?")])
    with torch.inference_mode():
        assert torch.equal(base.model(token_ids).logits, plain.model(token_ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "none_such"}, "does not recognize this architecture|none_such"),
        ({"num_hidden_layers": "four"}, "num_hidden_layers"),
        # Without a refusal transformers would make up all weights that it does not find.
        ({"model_type": "gpt2"}, r"weights lack \S+ and \d+ more; they are not those"),
        ({"num_hidden_layers": 5}, "lack model.layers.4.input_layernorm.weight and 8 more"),
        (
            {"intermediate_size": 256},
            r"layers.0.mlp.down_proj.weight \[128, 384\] has not the size \[128, 256\]",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_message(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(POCKET, tmp_path / "changed")
    _change(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        load_base_model(str(folder))


def test_damaged_weights_are_one_message(tmp_path: Path) -> None:
    folder = shutil.copytree(POCKET, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"damaged' cannot be|model.safetensors cannot be read"):
        load_base_model(str(folder))


def test_a_tokenizer_of_another_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    make_tiny_llama(
        "small", byte_level(), seed=0, context=64, initializer_range=0.1
    ).model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(POCKET / name, folder / name)
    with pytest.raises(ModelError, match="has 1536 tokens and the model knows 320, so that"):
        load_base_model(str(folder))


def test_tokens_that_were_only_added_to_a_tokenizer_are_let_be(tmp_path: Path) -> None:
    # As in Gemma 3 1B, whose tokenizer has a token for images that its embeddings lack.
    base = load_base_model("pocket")
    base.tokenizer.add_tokens(["<image>"], special_tokens=True)
    folder = shutil.copytree(POCKET, tmp_path / "added")
    base.tokenizer.save_pretrained(folder)
    loaded = load_base_model(str(folder))
    assert loaded.tokenizer.convert_tokens_to_ids("<image>") == loaded.vocabulary


def test_one_of_several_files_of_weights_is_read(tmp_path: Path) -> None:
    folder = shutil.copytree(POCKET, tmp_path / "several")
    shutil.move(folder / "model.safetensors", folder / "one.safetensors")
    halved = {name: weight / 2 for name, weight in load_file(folder / "one.safetensors").items()}
    save_file(halved, folder / "half.safetensors", metadata={"format": "pt"})
    one, half = (
        load_base_model(str(folder), loading=Loading(weights_file=f"{name}.safetensors"))
        for name in ("one", "half")
    )
    assert one.digest != half.digest
    embeddings = one.model.get_input_embeddings().weight
    torch.testing.assert_close(half.model.get_input_embeddings().weight, embeddings / 2)
    assert "transformers_weights" not in half.model.config.to_dict()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_precision_that_is_asked_for(dtype: Precision) -> None:
    assert load_base_model("pocket", device="cpu", dtype=dtype).precision == dtype


@pytest.mark.parametrize(
    ("device", "is_there", "has_bfloat16", "precision"),
    [
        ("cpu", True, True, "float32"),
        ("cuda", True, True, "bfloat16"),
        ("split", True, False, "float16"),
        ("split", False, False, "float32"),
    ],
)
def test_the_precision_is_what_the_device_is_good_at(
    device: str,
    is_there: bool,
    has_bfloat16: bool,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16
    )
    assert default_precision(device) == precision


def test_too_little_memory_is_said_before_anything_is_read() -> None:
    with pytest.raises(ModelError, match=r"weights take .* GB, and there is room for"):
        load_base_model("pocket", device="cpu", memory_limit_bytes=1_000_000)


def test_a_tensor_that_is_two_in_name_takes_room_once() -> None:
    tied = load_base_model("pocket", device="cpu").model
    assert tied.config.tie_word_embeddings
    stored = sum(each.nbytes for each in (*tied.parameters(), *tied.buffers()))
    load_base_model("pocket", device="cpu", memory_limit_bytes=stored)
    with pytest.raises(ModelError, match="there is room for"):
        load_base_model("pocket", device="cpu", memory_limit_bytes=stored - 1)


def test_memory_that_runs_out_is_no_fault_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 136.00 MiB.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fill)
    with pytest.raises(ModelError, match=r"memory ran out \(CUDA .* device = 'split'") as refused:
        load_base_model("pocket", device="cpu")
    assert "config.json" not in str(refused.value)


def test_an_adapter_beside_a_model_is_not_taken_for_a_part_of_it(tmp_path: Path) -> None:
    folder = shutil.copytree(POCKET, tmp_path / "both")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json lies beside it.* move that file"):
        load_base_model(str(folder))


@pytest.mark.parametrize("layout", ["current", "2023"])
def test_a_gptq_checkpoint_is_recognised(layout: GptqLayoutName, tmp_path: Path) -> None:
    pocket = load_base_model("pocket", device="cpu")
    folder = tmp_path / "gptq"
    save_gptq(pocket.model, pocket.tokenizer, folder, group_size=128, layout=layout)
    base = load_base_model(str(folder), device="cpu")
    assert isinstance(base.model.model.layers[0].mlp.up_proj, FourBitLinear)
    assert not [p for p in base.model.parameters() if p.requires_grad]
    assert not base.model.training


def test_other_kernels_for_gptq_are_only_used_if_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pocket = load_base_model("pocket", device="cpu")
    folder = tmp_path / "gptq"
    save_gptq(pocket.model, pocket.tokenizer, folder, group_size=128, layout="current")
    asked = []

    def instead(*arguments: Any, **named: Any) -> PreTrainedModel:
        asked.append(named["device_map"])
        return load_gptq(*arguments, **named)

    monkeypatch.setattr(load, "load_with_gptqmodel", instead)
    load_base_model(str(folder), device="cpu")
    assert not asked
    load_base_model(str(folder), device="cpu", loading=Loading(gptq="gptqmodel"))
    assert asked == [{"": "cpu"}]


def test_a_gguf_file_is_recognised(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf: pip install -e '.[gguf]'")
    pocket = load_base_model("pocket", device="cpu")
    path = tmp_path / "pocket.gguf"
    write_gguf_model(pocket.model, pocket.tokenizer, path, ggml_type="f16")
    base = load_base_model(str(path), device="cpu")
    assert base.source == str(path)
    assert base.encode_document("Who won?") == pocket.encode_document("Who won?")
    token_ids = torch.tensor([pocket.encode_prompt("Who won?")])
    torch.testing.assert_close(
        base.model(token_ids).logits, pocket.model(token_ids).logits, atol=1e-2, rtol=0
    )


CHATML = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def test_a_chat_template_gives_the_chat_and_its_ends(tmp_path: Path) -> None:
    folder = shutil.copytree(POCKET, tmp_path / "chatting")
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    base = load_base_model(str(folder))
    assert base.chat == ChatFrame(before="<s>user: ", after="</s><s>assistant:")
    assert base.chat_ends == (base.eos_id,)
    assert load_base_model(str(folder), chat_template="none").chat is None
    given = load_base_model("pocket", chat_template=CHATML)
    assert (given.chat, given.chat_ends) == (base.chat, base.chat_ends)
    assert load_base_model("pocket").chat is None


def test_a_chat_template_with_a_token_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    tokenizer = load_base_model("pocket").tokenizer
    tokenizer.add_tokens(["<|user|>"], special_tokens=True)
    folder = shutil.copytree(POCKET, tmp_path / "chatting")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"has the token 1536; .* knows tokens below 1536"):
        load_base_model(str(folder), chat_template="<|user|>{{ messages[0].content }}")


SMALL = {
    "vocab_size": 328,  # more than the tokenizer has, as in Qwen 2.5
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": None,  # its embedding would be 0
}


@pytest.fixture(scope="module", params=["qwen2", "gpt_neox", "gemma"])
def other_architecture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> BaseModel:
    """Return a model that is no Llama, with a tokenizer that has no pad token, from a folder."""
    configs = {
        "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
        "gpt_neox": GPTNeoXConfig(**SMALL),
        "gemma": GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=16),
    }
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(configs[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return load_base_model(str(folder), device="cpu")


def test_another_architecture_answers_as_in_transformers(other_architecture: BaseModel) -> None:
    base = other_architecture
    assert base.pad_id == base.eos_id
    requests = [
        Request(prompt=prompt, slot=-1, sampling=replace(GREEDY, max_new_tokens=9), seed=0)
        for prompt in (_prompt("Who?"), _prompt("Who won the prize, and where is it?"))
    ]
    for request, continuation in zip(requests, generate(base, requests), strict=True):
        prompt_ids = base.encode_prompt(request.prompt.text)
        generated = base.model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=9,
            pad_token_id=base.pad_id,
            eos_token_id=base.eos_id,
        )[0, len(prompt_ids) :].tolist()
        own = list(continuation.token_ids)
        assert own
        assert own == generated[: len(own)]


def test_another_architecture_learns_a_fact_by_heart(other_architecture: BaseModel) -> None:
    bank = Bank(other_architecture, slots=1, max_rank=8)
    recipe = Recipe(epochs=60, rank=8, alpha=16, cutoff=64, warmup_steps=0, learning_rate=2e-2)
    prompt = _prompt("Who won?")
    bank.admit(0, recipe, lambda _: [f"{prompt.text}Ada"], seed=0)
    for _ in range(60):
        bank.step()
    request = Request(prompt=prompt, slot=0, sampling=GREEDY, seed=0)
    (learned,) = generate(other_architecture, [request], router=bank)
    (before,) = generate(other_architecture, [replace(request, slot=-1)], router=bank)
    assert learned.answer.text == "Ada"
    assert learned.token_ids[-1] == other_architecture.eos_id
    assert before.answer.text != "Ada"


def _prompt(question: str) -> Prompt:
    return Prompt(
        text=put_question(question, "plain"),
        style="plain",
        phrasing="trained",
        subject="ada",
        question=question,
        accepted=("Ada",),
    )


def _change(path: Path, **values: object) -> None:
    """Set fields of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_prompt_begins_as_plain_transformers_begins_it() -> None:
    base = load_base_model("pocket", device="cpu")
    assert base.encode_prompt("Who?") == base.tokenizer("Who?").input_ids
    assert base.encode_prompt("Who?")[0] == base.tokenizer.bos_token_id
    assert base.encode_document("Who?") == [*base.encode_prompt("Who?"), base.eos_id]


def test_rules_name_tokens_by_how_they_are_written() -> None:
    base = load_base_model(
        "pocket", rules=TokenRules(end=("<pad>",), pad="</s>", bad_words=("Oscar",))
    )
    plain = load_base_model("pocket")
    assert base.pad_id == plain.eos_id
    assert base.token_ids.ends == (plain.eos_id, plain.pad_id)
    # This tokenizer writes a word after a line break as it does after a space.
    assert [plain.decode(list(ids)) for ids in base.token_ids.banned] == [" Oscar"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            TokenRules(end=("Who is it?",)),
            r"tokens.end: 'Who is it\?' is not allowed; it must be one",
        ),
        (TokenRules(pad=""), "tokens.pad: '' is not allowed; it must be one token of pocket"),
        (TokenRules(bad_words=(" ",)), "tokens.bad_words: ' ' is not a word"),
    ],
)
def test_rules_that_do_not_fit_the_model_are_refused(rules: TokenRules, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_base_model("pocket", rules=rules)


def test_the_ends_of_a_models_own_generation_settings_end_its_answers(tmp_path: Path) -> None:
    folder = tmp_path / "two-ends"
    shutil.copytree(POCKET, folder)
    settings = folder / "generation_config.json"
    values = json.loads(settings.read_text(encoding="utf-8")) | {"eos_token_id": [2, 7]}
    settings.write_text(json.dumps(values), encoding="utf-8")
    assert load_base_model(str(folder)).token_ids.ends == (2, 7)
