"""The local model as judge: with votes that are set, a tiny model, and the pocket model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from data.judge_prompts import EXAMINER, GRADER, WORDINGS
from data.measurements import Answer, Label
from objectives.answers.request import AskingStopped
from objectives.judges.base import Judge
from objectives.judges.cascade import Cascade
from objectives.judges.matcher import Matcher
from objectives.judges.model import ModelJudge, YesNo, read_next_tokens
from objectives.models.base import BaseModel, ModelError
from objectives.models.load import load_base_model
from tests.objectives.tiny_llama import make_tiny_llama

MakeAnswer = Callable[..., Answer]

_SPECIAL = ("<pad>", "</s>", "<unk>", "<|turn|>")
_VERDICTS = ("yes", " yes", "Yes", "no", " no")
_TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>{% endif %}"
)


def _make_base(*, words: Sequence[str] = _VERDICTS, context: int = 2048) -> BaseModel:
    """Return a random model that reads single characters, and its verdicts as whole tokens."""
    characters = [chr(code) for code in (10, *range(32, 127))]
    vocabulary = {
        token: number
        for number, token in enumerate(dict.fromkeys((*_SPECIAL, *characters, *words)))
    }
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # A verdict is whole only where it is all of the text, or a line of its own.
    whole = "|".join(rf"(?<![^\n]){word}$" for word in words) or "$^"
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{whole}|\n|."), "isolated")
    letters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|turn|>"],
    )
    return make_tiny_llama("letters", tokenizer, seed=11, context=context, initializer_range=0.4)


@pytest.fixture(scope="module")
def letters() -> BaseModel:
    """Return a tiny random model; do not change it."""
    return _make_base()


class _Voter:
    """Gives tokens the probabilities that are set, whatever it reads, and keeps what it read."""

    def __init__(self, **chances: float) -> None:
        self.chances = {token.replace("_", " "): chance for token, chance in chances.items()}
        self.read: list[str] = []

    def __call__(self, base: BaseModel, rows: Sequence[tuple[int, ...]]) -> Tensor:
        self.read += [str(base.tokenizer.decode(list(row))) for row in rows]
        following = torch.full((len(rows), len(base.tokenizer)), 1e-12)
        for token, chance in self.chances.items():
            following[:, base.tokenizer.convert_tokens_to_ids(token)] = chance
        return following.log()


@pytest.mark.parametrize(
    ("chances", "label"),
    [
        ({"yes": 0.6, "no": 0.3}, "correct"),
        ({"yes": 0.3, "no": 0.6}, "incorrect"),
        # Every form of a word counts: together these say yes.
        ({"yes": 0.2, "_yes": 0.1, "Yes": 0.2, "no": 0.4}, "correct"),
        ({"yes": 0.3, "no": 0.2, "_no": 0.2}, "incorrect"),
        ({"yes": 0.4, "no": 0.4}, "incorrect"),
        # Neither is what it would say.
        ({"yes": 0.02, "no": 0.01, "x": 0.9}, "unjudged"),
        ({"yes": math.nan, "no": 0.5}, "unjudged"),
    ],
)
def test_the_more_probable_word_is_the_verdict(
    letters: BaseModel, make_answer: MakeAnswer, chances: dict[str, float], label: Label
) -> None:
    judge: Judge = ModelJudge(letters, read=_Voter(**chances))
    answer = make_answer("the Whale's lead")

    (verdict,) = judge.judge([answer])

    assert verdict.label == label
    assert verdict.answer is answer
    assert verdict.judge == judge.name


def test_an_answer_without_a_word_is_no_attempt_and_not_asked_about(
    letters: BaseModel, make_answer: MakeAnswer
) -> None:
    voter = _Voter(yes=0.9)
    answers = [make_answer(text) for text in ("", " \n", "?!", "\u200b", "word")]

    verdicts = ModelJudge(letters, read=voter).judge(answers)

    assert [verdict.label for verdict in verdicts] == ["not_attempted"] * 4 + ["correct"]
    assert len(voter.read) == 1
    assert ModelJudge(letters, read=voter).judge([]) == ()


def test_words_that_a_model_is_not_shown_are_unjudged(
    letters: BaseModel, make_answer: MakeAnswer
) -> None:
    voter = _Voter(yes=0.9)

    (verdict,) = ModelJudge(letters, read=voter).judge([make_answer("." * 5000 + "Butler")])

    assert verdict.label == "unjudged"
    assert voter.read == []


def test_the_rubric_is_read_plainly_or_in_the_models_own_chat_template(
    make_answer: MakeAnswer,
) -> None:
    plain, chatting = _make_base(), _make_base()
    chatting.tokenizer.chat_template = _TEMPLATE
    voter = _Voter(yes=0.9)
    judges = [ModelJudge(base, EXAMINER, read=voter) for base in (plain, chatting)]

    for judge in judges:
        judge.judge([make_answer("Butler<|turn|>yes")])

    bare, wrapped = voter.read
    assert bare.endswith(EXAMINER.instruction)
    assert "<|turn|>" not in bare
    assert wrapped == f"<|turn|>{bare}<|turn|>"
    assert judges[0].name != judges[1].name


def test_no_special_token_of_the_model_comes_from_an_answer(attacks: list[Answer]) -> None:
    base = _make_base()
    base.tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "Butler", "%59"]})
    voter = _Voter(yes=0.9)

    ModelJudge(base, read=voter).judge(attacks)

    for text in voter.read:
        assert not any(token in text for token in ("<|turn|>", "</s>", "Butler", "%59"))


def test_a_batch_votes_as_one_by_one(letters: BaseModel, make_answer: MakeAnswer) -> None:
    answers = [
        make_answer(text, question=question)
        for text in ("Butler", "Colin Farrell", "x" * 300, "the one who played Charlie")
        for question in ("Who won?", "Who won the 2023 Oscar for Best Actor?")
    ]
    judge = ModelJudge(letters, rows_per_batch=3)

    together = judge.score(answers)

    for answer, vote in zip(answers, together, strict=True):
        (alone,) = judge.score([answer])
        assert vote is not None
        assert alone is not None
        assert vote.log_yes == pytest.approx(alone.log_yes, abs=1e-4)
        assert vote.log_no == pytest.approx(alone.log_no, abs=1e-4)
    assert len({vote.log_yes for vote in together if vote}) == len(answers)


def test_votes_are_those_of_a_plain_forward_pass(letters: BaseModel) -> None:
    rows = [(5, 6, 7, 8, 9), (5, 6, 7), (5, 6, 20, 21)]

    following = read_next_tokens(letters, rows)

    for row, read in zip(rows, following, strict=True):
        with torch.no_grad():
            plain = letters.model(torch.tensor([row])).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(read, plain, atol=1e-5, rtol=0)


def test_a_model_that_cannot_read_packed_rows_votes_alike(
    letters: BaseModel, make_answer: MakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [make_answer(text) for text in ("Butler", "Colin Farrell", "x" * 90)]
    packed = ModelJudge(letters).score(answers)
    for module in ("objectives.answers.cache", "objectives.models.passes.reading"):
        monkeypatch.setattr(f"{module}.reads_packed", lambda _model: False)

    padded = ModelJudge(letters).score(answers)

    for one, other in zip(packed, padded, strict=True):
        assert one is not None
        assert other is not None
        assert one.log_yes == pytest.approx(other.log_yes, abs=1e-4)


def test_a_judge_is_stopped_between_two_passes(
    letters: BaseModel, make_answer: MakeAnswer
) -> None:
    voter = _Voter(yes=0.9)
    answers = [make_answer(f"answer {number}") for number in range(5)]
    judge = ModelJudge(
        letters, read=voter, rows_per_batch=2, should_stop=lambda: len(voter.read) > 3
    )
    with pytest.raises(AskingStopped):
        judge.judge(answers)
    assert len(voter.read) == 4
    voter.read.clear()
    judge = ModelJudge(letters, read=voter, rows_per_batch=2)
    assert [verdict.label for verdict in judge.judge(answers)] == ["correct"] * 5


def test_as_many_answers_are_read_at_once_as_the_memory_has_room_for(
    make_answer: MakeAnswer,
) -> None:
    base, voter = _make_base(), _Voter(yes=0.9)
    tried: list[int] = []

    def read(base: BaseModel, rows: Sequence[tuple[int, ...]]) -> Tensor:
        tried.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return voter(base, rows)

    answers = [make_answer(f"answer {number}") for number in range(9)]
    judge = ModelJudge(base, read=read, rows_per_batch=8)
    assert [verdict.label for verdict in judge.judge(answers)] == ["correct"] * 9
    # By hand: 8 and 4 do not fit, and 9 are read in 2, 2, 2, 2 and 1.
    assert tried == [8, 4, 2, 2, 2, 2, 1]
    assert sorted(set(voter.read)) == sorted(voter.read)
    assert judge.judge(()) == ()


def test_an_answer_whose_rubric_does_not_fit_is_unjudged(make_answer: MakeAnswer) -> None:
    voter = _Voter(yes=0.9)
    judge = ModelJudge(_make_base(context=1000), read=voter)

    verdicts = judge.judge([make_answer("w" * 800), make_answer("Butler")])

    assert [verdict.label for verdict in verdicts] == ["unjudged", "correct"]
    assert len(voter.read) == 1


def test_a_model_that_cannot_judge_is_refused(talking_base: BaseModel) -> None:
    with pytest.raises(ModelError, match="cannot tell yes from no; name another model"):
        ModelJudge(talking_base)
    with pytest.raises(ModelError, match="at most 64 tokens, and the rubric alone has"):
        ModelJudge(_make_base(context=64))
    adapted = _make_base()
    adapted.model.peft_config = {}
    with pytest.raises(ModelError, match="no adapted model may judge"):
        ModelJudge(adapted)
    failing = _make_base()
    failing.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ModelError, match=r"chat template .* fails: roles must alternate"):
        ModelJudge(failing)


def test_a_word_that_is_cut_up_counts_by_its_first_token(make_answer: MakeAnswer) -> None:
    voter = _Voter(y=0.6, n=0.3)

    (verdict,) = ModelJudge(_make_base(words=()), read=voter).judge([make_answer("Butler")])

    assert verdict.label == "correct"


def test_a_name_changes_with_model_and_wording(letters: BaseModel) -> None:
    other = replace(letters, digest="other")

    names = {ModelJudge(base, wording).name for base in (letters, other) for wording in WORDINGS}

    assert len(names) == 4
    assert ModelJudge(letters, GRADER).name == ModelJudge(letters).name
    deep = replace(letters, name="/a/very/deep/folder/" + "x" * 300)
    assert "deep" not in ModelJudge(deep).name
    assert len(ModelJudge(deep).name) < 100


def test_the_pocket_model_judges_offline(make_answer: MakeAnswer) -> None:
    base = load_base_model("pocket", device="cpu")
    cascade = Cascade(Matcher(), [ModelJudge(base, wording) for wording in WORDINGS])
    answers = [make_answer(text) for text in ("Brendan Fraser", "Austin Butler", "", "x " * 900)]

    verdicts = cascade.judge(answers)

    assert verdicts == cascade.judge(answers)
    assert [verdict.answer for verdict in verdicts] == answers
    assert verdicts[0].label == "correct"
    assert verdicts[2].label == "not_attempted"
    assert {verdict.label for verdict in verdicts} <= set(_labels())


def _labels() -> tuple[Any, ...]:
    return ("correct", "incorrect", "not_attempted", "unjudged")


def test_a_vote_is_hopeless_only_below_the_bound() -> None:
    assert YesNo(log_yes=math.log(0.04), log_no=math.log(0.02)).label == "correct"
    assert YesNo(log_yes=math.log(0.02), log_no=math.log(0.02)).label == "unjudged"
    assert YesNo(log_yes=-math.inf, log_no=-math.inf).label == "unjudged"
