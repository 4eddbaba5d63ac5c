"""What a chat template writes around a question, and how its answers end."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from data.prompts import ChatFrame
from objectives.models.base import ModelError
from objectives.models.chat import find_chat, read_template
from tests.objectives.odd_tokenizers import byte_level

CHATML = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""

LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)

ALPACA = """{% for message in messages %}{% if message.role == 'user' %}### Instruction:
{{ message.content }}

{% else %}### Response:
{{ message.content }}

{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:
{% endif %}"""


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>")
    made = byte_level(special=special)
    made.bos_token, made.eos_token = "<s>", "</s>"
    return made


def test_a_model_without_a_template_has_no_chat(tokenizer: PreTrainedTokenizerFast) -> None:
    assert find_chat(tokenizer) is None


def test_the_frame_is_what_the_template_writes_around_a_question(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = CHATML
    frame, ends = find_chat(tokenizer) or (None, None)
    assert frame == ChatFrame(
        before="<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    )
    assert ends == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who won?"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert f"{frame.before}Who won?{frame.after}" == rendered


def test_a_template_may_end_answers_with_eos_after_a_space(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert find_chat(tokenizer, LLAMA_2) == (
        ChatFrame(before="<s>[INST] ", after=" [/INST]"),
        (tokenizer.convert_tokens_to_ids("</s>"),),
    )


def test_a_template_without_an_end_token_ends_answers_where_the_next_turn_opens(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert find_chat(tokenizer, ALPACA) == (
        ChatFrame(
            before="### Instruction:\n", after="\n\n### Response:\n", end="### Instruction:"
        ),
        (),
    )


def test_the_template_given_is_used_in_place_of_the_tokenizers_own(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = CHATML
    frame, _ = find_chat(tokenizer, "{{ messages[0].content }}!") or (None, None)
    assert frame == ChatFrame(before="", after="!")
    assert tokenizer.chat_template == CHATML


def test_of_several_templates_the_one_for_chats_is_used(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = {"default": LLAMA_2, "tool_use": CHATML}
    assert find_chat(tokenizer) == find_chat(tokenizer, LLAMA_2)


def test_a_template_with_todays_date_writes_the_same_every_day(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    frame, _ = find_chat(
        tokenizer, "\n{{ strftime_now('%d %B %Y') }}: {{ messages[0].content }} " + "->"
    ) or (None, None)
    assert frame == ChatFrame(before="\n26 Jul 2024: ", after=" ->")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content }}", "must write the question once, with something around it"),
        ("{{ messages[0].content * 2 }}!", "must write the question once"),
        ("Hello{{ bos_token }}", "must write the question once"),
        ("{{ messages[0].content", "cannot be used: "),
        ("{{ raise_exception('no system prompt') }}", "cannot be used: no system prompt"),
        ("{{ nobody.home }}", "cannot be used: 'nobody' is undefined"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(
    tokenizer: PreTrainedTokenizerFast, template: str, message: str
) -> None:
    with pytest.raises(ModelError, match=r"chat_template: .*chat_template = \"none\"") as refused:
        find_chat(tokenizer, template)
    assert message in str(refused.value)


def test_a_template_is_given_as_text_or_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML, encoding="utf-8")
    assert read_template(str(path)) == read_template(CHATML) == CHATML


def test_a_template_that_is_neither_text_nor_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"chat.jinja' cannot be read \(No such file"):
        read_template(str(tmp_path / "chat.jinja"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ModelError, match=r"cannot be read .* name a file with a Jinja template"):
        read_template(str(tmp_path / "binary"))


def test_thinking_that_a_template_opens_is_closed(tokenizer: PreTrainedTokenizerFast) -> None:
    opening = CHATML.partition("{% if enable_thinking")[0] + "<think>\n{% endif %}"
    frame, _ = find_chat(tokenizer, opening) or (None, None)
    assert frame is not None
    assert frame.after == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
