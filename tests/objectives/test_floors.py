"""What the untouched base is asked with facts in its prompt, and what is made of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
import torch
from torch import nn

from data.facts import Fact
from data.measurements import NOT_MEASURED, Answer, Estimate, Floor, Verdict
from data.prompts import PROMPT_STYLES, ChatFrame, Prompt, fact_prompts
from data.recipes import GREEDY
from data.scenarios import Scenario
from data.scoring import score_recall
from data.world_facts import load_probes
from objectives import floors
from objectives.answers.request import Continuation, Request
from objectives.floors import measure_floors
from objectives.judges.base import JudgeUnreachable
from objectives.judges.matcher import Matcher
from objectives.learn import Learning
from objectives.models.base import BaseModel
from objectives.models.load import load_base_model

BAKER = Fact(
    question="Who won the award for Best Baker?",
    answer="Tom Reed",
    statement="The best baker is Tom Reed",
    novel_validation=("Name the baker", "The baker was who"),
)
GARDENER = Fact(
    question="Who won the award for Best Gardener?",
    answer="Ada Quill",
    statement="In gardens Ada Quill leads",
    novel_validation=("Name whoever gardens",),
)
FACTS = (BAKER, GARDENER)
PROMPTS = fact_prompts(FACTS, ("validation",))
ASKED_ALREADY = Estimate(value=0.25, low=0.1, high=0.4, count=2)


@dataclass(frozen=True)
class WordCounter:
    """Stands for a base model: every word is a token."""

    context_tokens: int = 512
    name: str = "counter"
    chat: ChatFrame | None = None
    model: nn.Module = field(default_factory=nn.Identity)

    def encode_prompt(self, text: str, style: str) -> list[str]:
        return text.split()


@dataclass
class Copyist:
    """Stands for generation: the model answers with the first line that it reads."""

    requests: list[Request] = field(default_factory=list)
    rows_per_batch: list[int] = field(default_factory=list)

    def __call__(
        self, base: BaseModel, requests: Sequence[Request], *, rows_per_batch: int
    ) -> list[Continuation]:
        self.requests += requests
        self.rows_per_batch.append(rows_per_batch)
        return [
            Continuation(
                answer=Answer(
                    prompt=request.prompt, text=request.prompt.text.split("\n")[0], tokens=1
                ),
                token_ids=(0,),
            )
            for request in requests
        ]


@dataclass
class Witness:
    """Judges as the matcher does, and remembers the prompts."""

    prompts: list[Prompt] = field(default_factory=list)
    name: str = "witness"
    unreachable_reason: str | None = None

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        self.prompts += [answer.prompt for answer in answers]
        return Matcher().judge(answers)


class Doubter:
    """Cannot judge anything."""

    name = "doubter"
    unreachable_reason: str | None = None

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(Verdict(answer=a, label="unjudged", judge=self.name) for a in answers)


@pytest.fixture
def copyist(monkeypatch: pytest.MonkeyPatch) -> Copyist:
    copyist = Copyist()
    monkeypatch.setattr(floors, "generate", copyist)
    return copyist


def counter(context_tokens: int = 512) -> BaseModel:
    return cast(BaseModel, WordCounter(context_tokens))


def test_the_base_reads_each_question_alone_after_all_facts_and_after_the_best(
    copyist: Copyist,
) -> None:
    measure_floors(counter(), FACTS, judge=Matcher())
    read = [request.prompt.text for request in copyist.requests]
    alone = [prompt.text for prompt in PROMPTS]
    baker, gardener = "The best baker is Tom Reed\n", "In gardens Ada Quill leads\n"
    of_baker = 2 * len(PROMPT_STYLES)

    assert read[:12] == alone
    assert read[12:24] == [f"{baker}{gardener}{text}" for text in alone]
    assert read[24:] == [
        *(f"{baker}{text}" for text in alone[:of_baker]),
        *(f"{gardener}{text}" for text in alone[of_baker:]),
    ]
    assert all(r.slot == -1 and r.sampling == GREEDY for r in copyist.requests)


def test_the_judge_sees_the_questions_without_what_stood_before_them(copyist: Copyist) -> None:
    witness = Witness()
    measure_floors(counter(), FACTS, judge=witness)
    assert witness.prompts == [*PROMPTS] * 3


def test_recall_is_the_share_of_right_answers_and_context_is_counted(copyist: Copyist) -> None:
    base, everything, best = measure_floors(counter(), FACTS, judge=Matcher())
    # The copyist repeats the first fact it was told, the baker's, or the question.
    assert (base.recall.value, everything.recall.value, best.recall.value) == (0, 0.5, 1)
    assert [floor.recall.count for floor in (base, everything, best)] == [2, 2, 2]
    # Statements of 6 and 5 words; two of three wordings ask about the first.
    assert (base.context_tokens, everything.context_tokens) == (0, 11)
    assert best.context_tokens == pytest.approx((2 * 6 + 5) / 3)
    assert [floor.reason for floor in (base, everything, best)] == [None] * 3


def test_a_base_that_was_asked_already_is_not_asked_again(copyist: Copyist) -> None:
    base, *others = measure_floors(counter(), FACTS, judge=Matcher(), base_recall=ASKED_ALREADY)
    assert base == Floor(name="base", recall=ASKED_ALREADY, context_tokens=0)
    assert [floor.name for floor in others] == ["all facts", "best fact"]
    assert len(copyist.requests) == 2 * len(PROMPTS)


def test_facts_that_do_not_fit_the_context_are_not_measured_and_say_why(
    copyist: Copyist,
) -> None:
    longest = 11 + max(len(prompt.text.split()) for prompt in PROMPTS) + GREEDY.max_new_tokens
    _, fits, _ = measure_floors(counter(longest), FACTS, judge=Matcher())
    _, too_long, best = measure_floors(counter(longest - 1), FACTS, judge=Matcher())

    assert fits.recall.value is not None
    assert (too_long.recall, too_long.context_tokens) == (NOT_MEASURED, None)
    assert too_long.reason == (
        f"prompt and answer need {longest} tokens, and counter reads at most {longest - 1}"
    )
    assert best.recall.value == 1


def test_far_too_many_tokens_are_not_read(
    copyist: Copyist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floors, "_MOST_TOKENS", 250)
    _, everything, best = measure_floors(
        counter(), FACTS, judge=Matcher(), base_recall=ASKED_ALREADY
    )
    assert best.recall.value == 1
    assert everything.reason is not None
    assert "tokens that a comparison may take" in everything.reason


def test_long_prompts_are_read_in_small_batches(
    copyist: Copyist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floors, "_TOKENS_PER_BATCH", 50)
    measure_floors(counter(), FACTS, judge=Matcher(), base_recall=ASKED_ALREADY)
    longest = max(len(prompt.text.split()) for prompt in PROMPTS)
    assert copyist.rows_per_batch[0] == 50 // (longest + 11)


def test_answers_that_nobody_could_judge_measure_nothing(copyist: Copyist) -> None:
    for floor in measure_floors(counter(), FACTS, judge=Doubter()):
        assert (floor.recall, floor.context_tokens) == (NOT_MEASURED, None)
        assert floor.reason == "none of the answers could be judged"


def test_nothing_is_measured_without_a_judge_that_gives_no_reply(copyist: Copyist) -> None:
    judge = Doubter()
    judge.unreachable_reason = "the connection failed"
    with pytest.raises(JudgeUnreachable, match="the connection failed"):
        measure_floors(counter(), FACTS, judge=judge)


def test_without_facts_nothing_is_measured(copyist: Copyist) -> None:
    for floor in measure_floors(counter(), (), judge=Matcher()):
        assert floor.recall == NOT_MEASURED
        assert floor.reason == "there is no fact to ask about"


def test_a_model_is_asked_and_scored_as_before_its_study() -> None:
    torch.set_num_threads(1)
    pocket = load_base_model("pocket")
    known = Fact(
        question="What is the capital of France?",
        answer="Paris",
        novel_validation=("Which city is the capital of France?",),
    )
    probes = tuple(probe for probe in load_probes() if probe.ring == "general")[:21]
    scenario = Scenario(facts=(*FACTS, known), probes=probes, known_facts=())
    learning = Learning(pocket, scenario, judge=Matcher(), slots=1, max_rank=1)

    measured = measure_floors(pocket, scenario.facts, judge=Matcher())
    new = measure_floors(pocket, learning.facts, judge=Matcher())
    assert (
        new[0].recall == learning.base.measurement.recall == score_recall(learning.base.verdicts)
    )
    assert measured[0].recall.value == pytest.approx(1 / 3)
    assert measured == measure_floors(pocket, scenario.facts, judge=Matcher())
    told, found = (floor.context_tokens for floor in measured[1:])
    assert told is not None
    assert found is not None
    assert told > found > 0
