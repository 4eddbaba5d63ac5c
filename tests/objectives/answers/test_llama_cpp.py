"""llama.cpp answers as transformers and PEFT do, token for token, with an adapter or without."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request as WebRequest
from urllib.request import urlopen

import pytest
import torch
from peft import PeftModel

from data.facts import Fact
from data.formats import epoch_documents
from data.prompts import Prompt, fact_prompts
from data.recipes import GREEDY, Recipe
from data.scenarios import load_scenario
from data.world_facts import load_probes
from objectives.answers.endings import Endings
from objectives.answers.generate import generate
from objectives.answers.llama_cpp import answer_with_llama_cpp
from objectives.answers.request import BASE, Continuation, Request
from objectives.bank import Bank, export_adapter
from objectives.bank.gguf_adapter import write_gguf_adapter
from objectives.judges.matcher import Matcher
from objectives.models.base import BaseModel, ModelError, TokenRules
from objectives.models.gguf.ggml_weights import quantised_weights
from objectives.models.gguf.writing import write_gguf_model
from objectives.models.load import load_base_model
from tests.objectives.byte_level_llama import LLAMA3_ROPE, make_byte_level_llama
from tests.objectives.sentencepiece_llama import READ, train_pieces

RECIPE = Recipe(
    epochs=8, rank=8, alpha=8, cutoff=96, warmup_steps=0, learning_rate=4e-3, batch_size=2
)
KINDS = {"plain": RECIPE, "rank-stabilised": replace(RECIPE, alpha=3, rslora=True)}


pytestmark = [
    pytest.mark.extras,
    # PEFT still reads an attribute of models that transformers has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def xllamacpp() -> Any:
    return pytest.importorskip("xllamacpp", reason="llama.cpp; pip install -e '.[gguf]'")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.set_num_threads(1)
    return load_base_model("pocket")


@pytest.fixture(scope="module")
def facts() -> tuple[Fact, ...]:
    """Return a third of the 2023 Oscars."""
    return load_scenario(None).facts[::3]


@pytest.fixture(scope="module")
def validation(facts: Sequence[Fact]) -> tuple[Prompt, ...]:
    return fact_prompts(facts, ("validation",))


@pytest.fixture(scope="module")
def model_file(xllamacpp: Any, base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama-cpp") / "pocket.gguf"
    write_gguf_model(base.model, base.tokenizer, path, ggml_type="f16")
    return path


@pytest.fixture(scope="module")
def adapters(
    xllamacpp: Any,
    base: BaseModel,
    facts: Sequence[Fact],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Return the folders of two adapters, trained in one bank."""
    bank, folder = Bank(base, slots=2, max_rank=8), tmp_path_factory.mktemp("adapters")
    for slot, recipe in enumerate(KINDS.values()):

        def texts(epoch: int, recipe: Recipe = recipe) -> list[str]:
            return [each.text for each in epoch_documents(facts, (), recipe, seed=0, epoch=epoch)]

        bank.admit(slot, recipe, texts, seed=slot)
    while not all(bank.progress(slot).finished for slot in range(2)):
        bank.step()
    for slot, kind in enumerate(KINDS):
        export_adapter(bank, slot, folder / kind)
    return {kind: folder / kind for kind in KINDS}


def answer_with_peft(
    base: BaseModel, prompts: Sequence[Prompt], adapter: Path
) -> list[Continuation]:
    """Return what transformers and PEFT generate, one prompt after the other, weights in f16."""
    endings, model = Endings(base), load_base_model("pocket").model
    continuations = []
    with quantised_weights(model, "f16"):
        adapted = PeftModel.from_pretrained(model, adapter).eval()
        for prompt in prompts:
            ids = torch.tensor([base.encode_prompt(prompt.text)])
            with torch.no_grad():
                generated = adapted.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=GREEDY.max_new_tokens,
                    do_sample=False,
                )
            tokens = endings.trim(generated[0, ids.shape[1] :].tolist(), GREEDY.max_new_tokens)
            continuations.append(endings.continuation(prompt, tokens))
        adapted.unload()
    return continuations


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_answers_every_validation_prompt_as_in_peft(
    base: BaseModel,
    validation: tuple[Prompt, ...],
    model_file: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    kind: str,
) -> None:
    write_gguf_adapter(adapters[kind], base.model.config, tmp_path / "adapter.gguf")
    answered = answer_with_llama_cpp(
        base, model_file, validation, adapter=tmp_path / "adapter.gguf"
    )
    expected = answer_with_peft(base, validation, adapters[kind])
    assert [each.token_ids for each in answered] == [each.token_ids for each in expected]
    assert [each.answer for each in answered] == [each.answer for each in expected]
    verdicts = Matcher().judge([each.answer for each in answered])
    assert sum(verdict.is_correct for verdict in verdicts) > len(verdicts) / 2


def test_the_base_alone_answers_what_it_knows_with_all_its_letters(
    base: BaseModel, model_file: Path
) -> None:
    probes = [probe.prompt() for probe in load_probes()]
    # Letters beyond ASCII are two tokens of the pocket model, neither of them text by itself.
    asked = [prompt for prompt in probes if not prompt.accepted[0].isascii()] + probes[::9]
    assert len(asked) > 20
    answered = answer_with_llama_cpp(base, model_file, asked)
    with quantised_weights(base.model, "f16"):
        expected = generate(
            base, [Request(prompt=each, slot=BASE, sampling=GREEDY, seed=0) for each in asked]
        )
    assert answered == expected
    verdicts = Matcher().judge([each.answer for each in answered])
    assert sum(verdict.is_correct for verdict in verdicts) > 0.9 * len(verdicts)
    assert not all(each.answer.text.isascii() for each in answered)
    assert answered[0].token_ids[-1] == base.eos_id


def test_scaled_rotary_frequencies_and_shared_heads_are_computed(
    xllamacpp: Any, base: BaseModel, tmp_path: Path
) -> None:
    model = make_byte_level_llama(rope_parameters=LLAMA3_ROPE, attention_bias=True)
    write_gguf_model(model, base.tokenizer, tmp_path / "m.gguf", ggml_type="f32")
    assert_answers_alike(replace(base, model=model), tmp_path / "m.gguf")


def assert_answers_alike(base: BaseModel, model: Path) -> None:
    """Ask llama.cpp and transformers some prompts; they must answer alike.

    Prompts where two tokens were less than 0.05 apart are left out: there rounding decides.
    """
    prompts = [probe.prompt() for probe in load_probes()[:48]]
    answered = answer_with_llama_cpp(base, model, prompts, max_new_tokens=12)
    endings, compared = Endings(base), set()
    for continuation in answered:
        ids = torch.tensor([base.encode_prompt(continuation.answer.prompt.text)])
        generated = base.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best, second = torch.cat(generated.logits).topk(2).values.unbind(1)
        if (best - second).min() > 0.05:
            tokens = endings.trim(generated.sequences[0, ids.shape[1] :].tolist(), 12)
            assert continuation.token_ids == tokens
            compared.add(tokens)
    assert len(compared) > 12


def test_llama_cpp_itself_splits_text_as_the_tokenizer_does_once_it_is_normalised(
    xllamacpp: Any, base: BaseModel, validation: tuple[Prompt, ...], model_file: Path
) -> None:
    texts = [prompt.text for prompt in (*validation, *(probe.prompt() for probe in load_probes()))]
    normaliser = base.tokenizer.backend_tokenizer.normalizer
    split = split_by_llama_cpp(xllamacpp, model_file, map(normaliser.normalize_str, texts))
    assert split == [base.encode_prompt(text) for text in texts]


def split_by_llama_cpp(xllamacpp: Any, model: Path, texts: Iterable[str]) -> list[list[int]]:
    """Return the token ids that llama.cpp makes of texts."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.warmup, settings.verbosity = False, -1
    server = xllamacpp.Server(settings)
    split = []
    for text in texts:
        request = WebRequest(
            f"{server.listening_address}/tokenize",
            data=json.dumps({"content": text, "add_special": True}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urlopen(request) as response:
            split.append(json.load(response)["tokens"])
    return split


@pytest.fixture(scope="module")
def llama_of_2023(xllamacpp: Any, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Return a random model whose folder has a SentencePiece tokenizer alone."""
    folder = tmp_path_factory.mktemp("llama")
    train_pieces(folder)
    make_byte_level_llama(vocab_size=700).save_pretrained(folder)
    return load_base_model(str(folder))


@pytest.fixture(scope="module")
def file_of_2023(llama_of_2023: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama-cpp") / "llama.gguf"
    write_gguf_model(llama_of_2023.model, llama_of_2023.tokenizer, path, ggml_type="f32")
    return path


def test_llama_cpp_itself_splits_text_as_sentencepiece_does(
    xllamacpp: Any, llama_of_2023: BaseModel, file_of_2023: Path, validation: tuple[Prompt, ...]
) -> None:
    texts = [*READ, " two  spaces", *(prompt.text for prompt in validation)]
    split = split_by_llama_cpp(xllamacpp, file_of_2023, texts)
    assert split == [llama_of_2023.encode_prompt(text) for text in texts]


def test_a_model_with_sentencepieces_tokenizer_answers_as_in_transformers(
    llama_of_2023: BaseModel, file_of_2023: Path
) -> None:
    assert_answers_alike(llama_of_2023, file_of_2023)


def test_no_prompts_have_no_answers(base: BaseModel, model_file: Path) -> None:
    assert answer_with_llama_cpp(base, model_file, []) == []


def test_files_that_llama_cpp_cannot_use_are_named(
    base: BaseModel, validation: tuple[Prompt, ...], model_file: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing more")
    for model, adapter, said in (
        (tmp_path / "none.gguf", None, "there is no file .*none.gguf"),
        (broken, None, "broken.gguf', or an adapter for it, cannot be loaded"),
        (model_file, broken, "or an adapter for it, cannot be loaded"),
    ):
        with pytest.raises(ModelError, match=said):
            answer_with_llama_cpp(base, model, validation[:1], adapter=adapter)


def test_banned_words_are_refused(
    xllamacpp: Any, base: BaseModel, validation: tuple[Prompt, ...]
) -> None:
    banning = replace(base, rules=TokenRules(bad_words=("Paris",)))
    with pytest.raises(ModelError, match=r"llama\.cpp cannot ban them"):
        answer_with_llama_cpp(banning, Path("m.gguf"), validation[:1])


def test_without_llama_cpp_the_extra_is_named(
    base: BaseModel, validation: tuple[Prompt, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ModelError, match=r"pip install -e '\.\[gguf\]'"):
        answer_with_llama_cpp(base, Path("m.gguf"), validation[:1])
