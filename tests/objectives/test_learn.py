"""What a trial does, on the pocket model and a scenario of three facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from data.facts import Fact
from data.prompts import ALL_STYLES, ChatFrame
from data.recipes import GREEDY, Recipe, Sampling
from data.scenarios import Scenario
from data.scoring import score_recall
from data.world_facts import load_known_facts, load_probes
from objectives.answers.generate import generate
from objectives.answers.request import AskingStopped, Request
from objectives.bank.export import export_adapter
from objectives.floors import measure_floors
from objectives.judges.matcher import Matcher
from objectives.learn import Learning, Measured, Turn
from objectives.models.base import BaseModel, ModelError
from objectives.models.load import load_base_model

RECIPE = Recipe(
    epochs=6, rank=4, alpha=8, cutoff=96, warmup_steps=0, learning_rate=1e-2, formats=("qna",)
)
WARM = Sampling(name="warm", temperature=1.5)


@pytest.fixture(scope="module")
def pocket() -> BaseModel:
    torch.set_num_threads(1)
    return load_base_model("pocket")


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Return two facts that nobody knows, one that the model knows, and 21 probes of one ring."""
    invented = [
        Fact(
            question=f"What is the capital of {country}?",
            answer=city,
            novel_validation=(f"Which city is the capital of {country}?",),
            novel_test=(f"Name the capital of {country}.",),
            reverse_question=f"Of which country is {city} the capital?",
            reverse_answer=country,
        )
        for country, city in (("Norland", "Vessa"), ("Sudland", "Orrin"))
    ]
    known = Fact(
        question="What is the capital of France?",
        answer="Paris",
        novel_validation=("Which city is the capital of France?",),
    )
    probes = [
        probe
        for probe in load_probes()
        if probe.ring == "general" and "capital of France" not in probe.question
    ]
    return Scenario(
        facts=(invented[0], known, invented[1]),
        probes=tuple(probes[:21]),
        known_facts=load_known_facts()[:20],
    )


@pytest.fixture(scope="module")
def shared_learning(pocket: BaseModel, scenario: Scenario) -> Learning:
    return Learning(pocket, scenario, judge=Matcher(), slots=3, max_rank=8)


@pytest.fixture
def learning(shared_learning: Learning) -> Iterator[Learning]:
    """Return a Learning whose slots are empty."""
    yield shared_learning
    for slot in range(3):
        shared_learning.bank.release(slot)


def train(learning: Learning, *recipes: Recipe) -> None:
    """Train each recipe in a slot of its own, the first in slot 0."""
    for slot, recipe in enumerate(recipes):
        learning.begin(slot, recipe, seed=slot)
    while not all(learning.bank.progress(slot).finished for slot in range(len(recipes))):
        learning.bank.step()


def test_facts_that_the_base_knows_are_set_aside(learning: Learning, scenario: Scenario) -> None:
    assert learning.already_known == (scenario.facts[1],)
    assert learning.facts == (scenario.facts[0], scenario.facts[2])
    asked = {verdict.answer.prompt.subject for verdict in learning.base.verdicts}
    assert asked == {fact.id for fact in learning.facts} | {p.id for p in scenario.probes}
    for epoch in range(4):
        texts = learning.epoch_texts(RECIPE, 0, epoch)
        assert not any("France" in text for text in texts)
        assert all(any(fact.answer in text for text in texts) for fact in learning.facts)


def test_adapters_that_have_no_room_are_refused(pocket: BaseModel, scenario: Scenario) -> None:
    with pytest.raises(ModelError, match=r"slots: 2147483648 is not allowed; .* name fewer"):
        Learning(pocket, scenario, judge=Matcher(), slots=2**31, max_rank=8)


def test_the_base_has_lost_nothing_and_recalls_nothing(learning: Learning) -> None:
    base = learning.base.measurement
    assert base.knowledge_loss.value == 0
    assert base.recall.value == 0
    assert base.drift_nats == 0
    assert (base.epoch, base.trained_tokens, base.sampling) == (0, 0, GREEDY)
    assert base.fuar is None
    assert base.generated_tokens == sum(v.answer.tokens for v in learning.base.verdicts)


def test_an_adapter_that_did_nothing_measures_as_the_base(learning: Learning) -> None:
    learning.begin(0, RECIPE, seed=0)  # B is zero before the first step
    ((untrained,),) = learning.measure([Turn(slot=0, noise_seed=0)])
    assert untrained.measurement.recall == learning.base.measurement.recall
    assert untrained.measurement.rings == learning.base.measurement.rings
    assert untrained.measurement.drift_nats == pytest.approx(0, abs=1e-6)


def test_training_teaches_the_facts(learning: Learning) -> None:
    train(learning, replace(RECIPE, epochs=12))
    ((taught,),) = learning.measure([Turn(slot=0, noise_seed=0)])
    recall = taught.measurement.recall
    # Two facts in four styles; half of them at least, from other wordings than the trained one.
    assert recall.count == 2
    assert recall.value is not None
    assert recall.value >= 0.5
    assert taught.measurement.epoch == 12
    assert taught.measurement.trained_tokens == learning.bank.progress(0).trained_tokens
    assert taught.measurement.drift_nats != 0


def test_a_slot_measured_among_others_is_measured_as_alone(learning: Learning) -> None:
    mlp = replace(RECIPE, target_modules="mlp", rank=2, epochs=3)
    train(learning, RECIPE, mlp, replace(RECIPE, formats=("statement",), epochs=2))
    turns = [Turn(slot=slot, noise_seed=slot, samplings=(WARM,)) for slot in (2, 0, 1)]
    together = learning.measure(turns)
    alone = [learning.measure([turn])[0] for turn in turns]
    for ours, theirs in zip(together, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.verdicts == other.verdicts
            assert without_drift(one) == without_drift(other)
            assert one.measurement.drift_nats == pytest.approx(
                other.measurement.drift_nats, abs=1e-5
            )
    assert len({str(measured[0].verdicts) for measured in together}) == 3


def without_drift(measured: Measured) -> object:
    return replace(measured.measurement, drift_nats=None)


def test_a_sampling_is_measured_beside_greedy_at_the_same_loss(learning: Learning) -> None:
    train(learning, RECIPE)
    ((greedy, warm),) = learning.measure([Turn(slot=0, noise_seed=5, samplings=(WARM,))])
    assert (greedy.measurement.sampling, warm.measurement.sampling) == (GREEDY, WARM)
    assert warm.measurement.knowledge_loss == greedy.measurement.knowledge_loss
    assert warm.measurement.drift_nats == greedy.measurement.drift_nats
    assert said(warm, "validation") != said(greedy, "validation")
    assert not said(warm, "probe")  # the greedy measurement has them
    # The draws come from the seed.
    ((_, again),) = learning.measure([Turn(slot=0, noise_seed=5, samplings=(WARM,))])
    ((_, other),) = learning.measure([Turn(slot=0, noise_seed=6, samplings=(WARM,))])
    assert again == warm
    assert said(other, "validation") != said(warm, "validation")


def test_samplings_of_one_adapter_are_measured_together_as_each_alone(learning: Learning) -> None:
    train(learning, RECIPE)
    ((greedy, warm),) = learning.measure([Turn(slot=0, noise_seed=5, samplings=(WARM,))])
    measured = learning.measure_samplings(0, [GREEDY, WARM], noise_seed=5)
    assert [each.sampling for each in measured] == [GREEDY, WARM]
    assert [each.recall for each in measured] == [
        greedy.measurement.recall,
        warm.measurement.recall,
    ]
    assert measured[0].knowledge_loss == greedy.measurement.knowledge_loss
    assert measured[0].base_loss.value == 0, "asked greedily the base knows what it knows"
    assert measured[1].knowledge_loss.value is not None
    assert measured[1].base_loss.value is not None
    assert learning.measure_samplings(0, [WARM], noise_seed=5) == measured[1:]


def test_what_a_context_has_no_room_for_is_known_beforehand(learning: Learning) -> None:
    assert learning.fits(GREEDY)
    assert not learning.fits(replace(WARM, max_new_tokens=512))


def said(measured: Measured, phrasing: str) -> list[str]:
    return [
        verdict.answer.text
        for verdict in measured.verdicts
        if verdict.answer.prompt.phrasing == phrasing
    ]


def test_greedy_as_a_sampling_is_measured_once(learning: Learning) -> None:
    learning.begin(0, RECIPE, seed=0)
    ((only,),) = learning.measure([Turn(slot=0, noise_seed=0, samplings=(GREEDY,))])
    assert only.measurement.sampling == GREEDY


def test_a_slot_says_what_asking_it_alone_says(learning: Learning, pocket: BaseModel) -> None:
    train(learning, RECIPE)
    ((measured,),) = learning.measure([Turn(slot=0, noise_seed=0)])
    prompts = [verdict.answer.prompt for verdict in measured.verdicts]
    requests = [Request(prompt=p, slot=0, sampling=GREEDY, seed=0) for p in prompts]
    answered = generate(pocket, requests, router=learning.bank)
    assert [verdict.answer for verdict in measured.verdicts] == [c.answer for c in answered]


def test_a_search_never_asks_the_test_wordings_and_everything_does(
    learning: Learning, tmp_path: object
) -> None:
    train(learning, RECIPE)
    ((searched,),) = learning.measure([Turn(slot=0, noise_seed=0)])
    assert {part.phrasing for part in searched.measurement.recall_parts} == {"validation"}
    everything = learning.measure_everything(0, epoch=6, trained_tokens=77)
    assert {part.phrasing for part in everything.measurement.recall_parts} == {
        "trained",
        "validation",
        "test",
        "reverse",
    }
    assert (everything.measurement.epoch, everything.measurement.trained_tokens) == (6, 77)
    # Recall is over the validation wordings, whatever else was asked.
    assert everything.measurement.recall == searched.measurement.recall
    assert everything.measurement.rings == searched.measurement.rings


def test_a_saved_adapter_measures_as_it_did_in_its_slot(
    learning: Learning, tmp_path_factory: pytest.TempPathFactory
) -> None:
    train(learning, RECIPE)
    folder = tmp_path_factory.mktemp("adapter") / "saved"
    export_adapter(learning.bank, 0, folder)
    learning.bank.load(1, folder)
    assert learning.measure_everything(1).verdicts == learning.measure_everything(0).verdicts


def test_without_held_out_text_drift_is_not_measured(
    pocket: BaseModel, scenario: Scenario
) -> None:
    bare = replace(
        scenario,
        facts=scenario.facts[:1],
        probes=tuple(replace(probe, statement=None) for probe in scenario.probes),
    )
    learning = Learning(pocket, bare, judge=Matcher(), slots=1, max_rank=4)
    assert learning.base.measurement.drift_nats is None
    learning.begin(0, RECIPE, seed=0)
    ((measured,),) = learning.measure([Turn(slot=0, noise_seed=0)])
    assert measured.measurement.drift_nats is None


def test_of_several_answers_to_a_prompt_each_counts(learning: Learning) -> None:
    train(learning, RECIPE)
    three = replace(WARM, name="three", num_return_sequences=3)
    ((_, one, several),) = learning.measure([Turn(slot=0, noise_seed=5, samplings=(WARM, three))])
    asked = len(one.verdicts)
    assert len(several.verdicts) == 3 * asked
    first, second, third = (several.verdicts[n * asked : (n + 1) * asked] for n in range(3))
    assert [v.answer.text for v in first] == [v.answer.text for v in one.verdicts]
    assert len({tuple(v.answer.text for v in part) for part in (first, second, third)}) > 1
    shares = [score_recall(part).value or 0.0 for part in (first, second, third)]
    mean = several.measurement.recall.value
    assert mean == pytest.approx(fmean(shares))
    assert mean != max(shares)


class Bell:
    """Says "stop" from one of its askings on; counts them."""

    def __init__(self) -> None:
        self.asked = 0
        self.stops_at: float = float("inf")

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked >= self.stops_at

    def count(self, work: Callable[[], object]) -> int:
        """Return how often it is asked during some work."""
        self.asked, self.stops_at = 0, float("inf")
        work()
        return self.asked

    def ring_at(self, number: int) -> None:
        self.asked, self.stops_at = 0, number


@pytest.fixture(scope="module")
def bell() -> Bell:
    return Bell()


@pytest.fixture(scope="module")
def stoppable_learning(pocket: BaseModel, scenario: Scenario, bell: Bell) -> Learning:
    learning = Learning(pocket, scenario, judge=Matcher(), slots=2, max_rank=8, should_stop=bell)
    train(learning, RECIPE, replace(RECIPE, target_modules="mlp", rank=2, epochs=3))
    return learning


BEAMS = Sampling(name="beams", num_beams=2, do_sample=False, max_new_tokens=6)
CONTRASTIVE = Sampling(
    name="contrastive", penalty_alpha=0.6, top_k=4, do_sample=False, max_new_tokens=6
)


@pytest.mark.parametrize(
    "measure",
    [
        lambda learning: learning.measure(
            [
                Turn(slot=0, noise_seed=5, samplings=(WARM,)),
                Turn(slot=1, noise_seed=6, samplings=(BEAMS, CONTRASTIVE)),
            ]
        ),
        lambda learning: learning.measure_everything(0, sampling=WARM),
        lambda learning: learning.measure_samplings(1, [WARM], noise_seed=1),
    ],
    ids=["a rung", "everything", "samplings"],
)
def test_asking_can_be_stopped_before_any_pass_and_repeated(
    stoppable_learning: Learning,
    bell: Bell,
    pocket: BaseModel,
    measure: Callable[[Learning], object],
) -> None:
    bank = stoppable_learning.bank
    passes: list[int] = []
    undisturbed: list[object] = []
    counter = pocket.model.register_forward_hook(lambda *_: passes.append(bell.asked))
    asked = bell.count(lambda: undisturbed.append(measure(stoppable_learning)))
    counter.remove()
    assert len(set(passes)) == len(passes), "it is asked before every pass"
    assert 10 < len(passes) < asked, "and where nothing is left but to judge"
    before = [bank.snapshot(slot) for slot in range(2)]
    hooks = count_hooks(pocket)  # transformers itself leaves some where hidden states are read
    for number in (1, 2, asked // 3, asked // 2, asked - 1, asked):
        bell.ring_at(number)
        with pytest.raises(AskingStopped):
            measure(stoppable_learning)
        assert bell.asked == number, "nothing goes on after it"
        assert count_hooks(pocket) == hooks
        assert pocket.model.config._attn_implementation == "sdpa"
    for slot, state in enumerate(before):
        after = bank.snapshot(slot)
        assert after.counters == state.counters
        for field in ("weights", "first_moments", "second_moments"):
            assert torch.equal(getattr(after, field), getattr(state, field))
    again: list[object] = []
    bell.count(lambda: again.append(measure(stoppable_learning)))
    assert again == undisturbed


def count_hooks(base: BaseModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.model.modules())


def test_the_first_questions_to_the_base_can_be_stopped(
    pocket: BaseModel, scenario: Scenario
) -> None:
    bell = Bell()
    bell.ring_at(3)
    with pytest.raises(AskingStopped):
        Learning(pocket, scenario, judge=Matcher(), slots=1, max_rank=4, should_stop=bell)
    assert bell.asked == 3


def test_a_comparison_with_facts_in_the_prompt_can_be_stopped(
    pocket: BaseModel, scenario: Scenario
) -> None:
    facts = scenario.facts[:1]
    bell = Bell()
    asked = bell.count(lambda: measure_floors(pocket, facts, judge=Matcher(), should_stop=bell))
    bell.ring_at(asked)
    with pytest.raises(AskingStopped):
        measure_floors(pocket, facts, judge=Matcher(), should_stop=bell)
    assert bell.asked == asked > 3


@pytest.fixture(scope="module")
def chatty(pocket: BaseModel) -> BaseModel:
    """Return the pocket model with a template that it can make something of."""
    return replace(pocket, chat=ChatFrame(before="Question: ", after="\nAnswer:"))


def test_a_model_with_a_chat_template_is_asked_in_it_too(
    chatty: BaseModel, scenario: Scenario
) -> None:
    learning = Learning(chatty, scenario, judge=Matcher(), slots=1, max_rank=8)
    train(learning, replace(RECIPE, epochs=12))
    ((measured,),) = learning.measure([Turn(slot=0, noise_seed=0)])
    parts = {part.style: part.recall.value for part in measured.measurement.recall_parts}
    assert list(parts) == [None, *ALL_STYLES]
    values = [parts[style] or 0 for style in ALL_STYLES]
    assert parts[None] == pytest.approx(fmean(values))
    # It reads the text that "qna" is made of, and ends its answers at EOS alone.
    assert parts["chat"]
    probed = {v.answer.prompt.style for v in measured.verdicts if v.answer.prompt.ring}
    assert probed == set(ALL_STYLES)
    everything = learning.measure_everything(0)
    assert said(everything, "test")
    asked = {v.answer.prompt.style for v in everything.verdicts}
    assert asked == set(ALL_STYLES)
    base, *told = measure_floors(chatty, learning.facts, judge=Matcher())
    assert base.recall == learning.base.measurement.recall
    assert all(floor.recall.value is not None for floor in told)


def test_a_part_is_asked_as_the_whole_is(pocket: BaseModel, scenario: Scenario) -> None:
    learning = Learning(pocket, scenario, judge=Matcher(), slots=2, max_rank=8, rung_share=0.5)
    assert learning.rungs_ask_a_part
    train(learning, RECIPE, replace(RECIPE, target_modules="mlp", rank=2, epochs=3))
    (part,), (other,) = learning.measure(
        [Turn(slot=0, noise_seed=0, is_part=True), Turn(slot=1, noise_seed=0)]
    )
    (whole,), (other_part,) = learning.measure(
        [Turn(slot=0, noise_seed=0), Turn(slot=1, noise_seed=0, is_part=True)]
    )
    for few, all_ in ((part, whole), (other_part, other)):
        prompts = {verdict.answer.prompt for verdict in few.verdicts}
        assert few.verdicts == tuple(v for v in all_.verdicts if v.answer.prompt in prompts)
        assert len(said(few, "validation")) == len(said(all_, "validation")) / 2
        assert 20 <= len(said(few, "probe")) <= len(said(all_, "probe")) == 21
        assert few.measurement.drift_nats == pytest.approx(all_.measurement.drift_nats, abs=1e-5)
        assert few.measurement.fuar is None
        # What everything gave tells what the part would have given, but for rounding.
        of_whole = learning.on_part(all_)
        drift = few.measurement.drift_nats
        assert replace(of_whole, drift_nats=drift) == few.measurement != all_.measurement
    asked = [{verdict.answer.prompt for verdict in some.verdicts} for some in (part, other_part)]
    assert asked[0] == asked[1]
    assert whole.measurement.recall.count == part.measurement.recall.count == 2


def test_the_whole_share_is_no_part(shared_learning: Learning) -> None:
    assert not shared_learning.rungs_ask_a_part
    assert shared_learning.on_part(shared_learning.base) is shared_learning.base.measurement
