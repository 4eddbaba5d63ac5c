"""The habits of tokenizers: each is met, or refused with what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    ByT5Tokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from data.prompts import PROMPT_STYLES, ChatFrame, Prompt, PromptStyle, put_question
from objectives.answers.encode import encode_prompts
from objectives.models.base import BaseModel, ModelError, TokenRules
from tests.objectives.odd_tokenizers import TEXTS, byte_level, sentencepiece_like
from tests.objectives.tiny_llama import make_tiny_llama

CHAT = ChatFrame(before="<s>[INST] ", after=" [/INST]")


def base_with(tokenizer: PreTrainedTokenizerBase) -> BaseModel:
    return make_tiny_llama("tiny", tokenizer, seed=0, context=64, initializer_range=0.1)


@pytest.fixture(scope="module")
def bytes_base() -> BaseModel:
    return base_with(byte_level())


@pytest.fixture(scope="module")
def pieces_base() -> BaseModel:
    return base_with(sentencepiece_like())


def test_without_a_pad_token_rows_are_filled_with_eos(bytes_base: BaseModel) -> None:
    assert bytes_base.tokenizer.pad_token_id is None
    assert bytes_base.pad_id == bytes_base.eos_id


def test_a_pad_token_that_only_the_tokenizer_knows_is_not_used() -> None:
    base = base_with(byte_level())
    base.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert base.tokenizer.pad_token_id >= base.vocabulary
    assert base.pad_id == base.eos_id


def test_a_tokenizer_without_eos_takes_the_first_end_that_is_named() -> None:
    base = base_with(byte_level(eos=None))
    with pytest.raises(ModelError, match=r"no end-of-text token; name one .* as tokens\.end"):
        _ = base.eos_id
    named = replace(base, rules=TokenRules(end=("<|endoftext|>", "?")))
    assert named.eos_id == base.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert named.encode_document("Who?")[-1] == named.eos_id
    assert named.pad_id == named.eos_id


def test_a_tokenizer_that_puts_no_bos_gets_none(bytes_base: BaseModel) -> None:
    plain = bytes_base.tokenizer("Who?", add_special_tokens=False).input_ids
    assert bytes_base.encode_prompt("Who?") == plain


def test_a_tokenizer_that_puts_bos_and_eos_keeps_only_bos_before_an_answer() -> None:
    base = base_with(sentencepiece_like(puts_eos=True))
    assert base.tokenizer("Who?").input_ids[-1] == base.eos_id
    prompt = base.encode_prompt("Who?")
    assert prompt[0] == base.tokenizer.bos_token_id
    assert base.eos_id not in prompt
    assert base.encode_document("Who?") == [*prompt, base.eos_id]


def test_a_slow_tokenizer_that_puts_eos_goes_the_same_way() -> None:
    base = base_with(ByT5Tokenizer(extra_ids=0))
    assert not base.tokenizer.is_fast
    assert base.encode_prompt("Hé") == [72 + 3, 0xC3 + 3, 0xA9 + 3]  # bytes after three specials
    assert base.encode_document("H") == [75, base.eos_id]
    assert base.decode([75, 0xC3 + 3, 0xA9 + 3, base.eos_id]) == "Hé"


def test_what_a_chat_template_wrote_gets_no_second_bos(pieces_base: BaseModel) -> None:
    base = replace(pieces_base, chat=CHAT)
    bos = base.tokenizer.bos_token_id
    chat = base.encode_prompt(put_question("Who?", "chat", CHAT), "chat")
    assert chat.count(bos) == 1
    assert chat[0] == bos
    assert base.encode_prompt("Who?") == pieces_base.encode_prompt("Who?")


def test_a_chat_template_without_bos_is_read_as_it_stands(pieces_base: BaseModel) -> None:
    frame = ChatFrame(before="[INST] ", after=" [/INST]")
    text = put_question("Who?", "chat", frame)
    alone = pieces_base.tokenizer(text, add_special_tokens=False).input_ids
    assert replace(pieces_base, chat=frame).encode_prompt(text, "chat") == alone


def test_whether_a_text_is_a_chat_is_told_by_its_style_alone(pieces_base: BaseModel) -> None:
    # A template that writes nothing before the question, and after it what other styles end with.
    frame = ChatFrame(before="", after="\n")
    base = replace(pieces_base, chat=frame)
    text = put_question("Who?", "plain")
    assert text == put_question("Who?", "chat", frame)
    bos = base.tokenizer.bos_token_id
    assert base.encode_prompt(text) == [bos, *base.encode_prompt(text, "chat")]
    plain = Prompt(
        text=text,
        style="plain",
        phrasing="probe",
        subject="who",
        question="Who?",
        accepted=("Ada",),
    )
    chat = replace(plain, style="chat")
    encoded = encode_prompts(base, [(plain, 8), (chat, 8)])
    assert encoded[plain] == (bos, *encoded[chat])
    assert base.encode_document(text)[0] == bos


def test_bad_words_have_the_tokens_that_they_have_within_a_text(pieces_base: BaseModel) -> None:
    base = replace(pieces_base, rules=TokenRules(bad_words=("Ad",)))
    known = base.tokenizer.convert_tokens_to_ids
    # At the beginning of a line no space is put before it; after a space the piece has one.
    assert base.token_ids.banned == ((known("Ad"),), (known("▁A"), known("d")))


def test_an_end_is_one_token_though_a_space_is_put_before_a_text(pieces_base: BaseModel) -> None:
    base = replace(pieces_base, rules=TokenRules(end=("?", "<unk>")))
    known = base.tokenizer.convert_tokens_to_ids
    assert base.token_ids.ends == (base.eos_id, known("?"), known("<unk>"))


def test_spaces_are_decoded_as_they_were_generated(bytes_base: BaseModel) -> None:
    tidy = byte_level()
    tidy.clean_up_tokenization_spaces = True
    tidy.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    text = "It is here , they say ."
    ids = bytes_base.encode_prompt(text)
    assert tidy.decode(ids) != text  # what it would make of them
    assert base_with(tidy).decode(ids) == text


def test_ids_without_a_name_are_no_text() -> None:
    # As in Qwen 2.5, whose embeddings have some hundred rows more than its tokenizer tokens.
    base = base_with(byte_level())
    base.model.resize_token_embeddings(len(base.tokenizer) + 8, mean_resizing=False)
    named = base.encode_prompt("Ada won it.")
    assert base.vocabulary == len(base.tokenizer) + 8
    assert base.decode([*named, base.vocabulary - 1]) == "Ada won it."


def test_ids_without_a_name_are_no_text_to_a_slow_tokenizer() -> None:
    base = base_with(ByT5Tokenizer(extra_ids=0))
    assert base.decode([75, base.vocabulary + 5]) == "H"


def test_a_text_with_a_token_that_the_model_lacks_is_refused() -> None:
    base = base_with(byte_level())
    base.tokenizer.add_tokens(["<image>"])
    with pytest.raises(ModelError, match=r"'An <image>\.' has the token \d+; tiny knows tokens"):
        base.encode_prompt("An <image>.")


def test_an_end_that_the_model_lacks_is_refused() -> None:
    base = base_with(byte_level())
    base.tokenizer.add_tokens(["<turn>"])
    with pytest.raises(ModelError, match=r"tokens\.end: '<turn>' is not allowed; tiny knows"):
        _ = replace(base, rules=TokenRules(end=("<turn>",))).token_ids


def test_a_context_that_only_the_tokenizer_names_is_taken_from_it(bytes_base: BaseModel) -> None:
    # BLOOM's positions have no end, and its configuration none either.
    config = BloomConfig(vocab_size=320, hidden_size=32, n_layer=1, n_head=4)
    base = replace(base_with(byte_level()), model=BloomForCausalLM(config))
    assert bytes_base.context_tokens == 64
    assert base.hidden_size == 32
    with pytest.raises(ModelError, match=r"does not say how many tokens .* model_max_length"):
        _ = base.context_tokens
    base.tokenizer.model_max_length = 48
    assert base.context_tokens == 48


@pytest.mark.parametrize("style", PROMPT_STYLES)
@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
def test_an_answer_is_trained_behind_the_tokens_that_it_is_asked_behind(
    make: Callable[[], PreTrainedTokenizerBase], style: PromptStyle
) -> None:
    base = base_with(make())
    prompt = put_question("Who won the prize?", style)
    space = "" if prompt.endswith("\n") else " "
    document = base.encode_document(f"{prompt}{space}Ada won it.")
    asked = base.encode_prompt(prompt)
    assert document[: len(asked)] == asked


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_bytes_come_back_as_they_went_in(bytes_base: BaseModel, text: str) -> None:
    assert bytes_base.decode(bytes_base.encode_prompt(text)) == text


def test_rows_filled_with_eos_change_no_answer(bytes_base: BaseModel) -> None:
    model: LlamaForCausalLM = bytes_base.model
    short, long = map(bytes_base.encode_prompt, (TEXTS[0][:9], TEXTS[1][:20]))
    filled = [bytes_base.pad_id] * (len(long) - len(short)) + short
    mask = torch.tensor([[0] * (len(long) - len(short)) + [1] * len(short), [1] * len(long)])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        together = model(
            torch.tensor([filled, long]), attention_mask=mask, position_ids=positions
        ).logits
        alone = model(torch.tensor([short])).logits
    torch.testing.assert_close(together[0, -1], alone[0, -1], atol=1e-5, rtol=0)
