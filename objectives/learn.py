"""Scenario A, learn: what a trial does. It trains on new facts, is asked, judged and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice

from data import scoring
from data.facts import Fact
from data.formats import epoch_documents
from data.measurements import Estimate, Measurement, SamplingMeasurement, Verdict
from data.probes import KnownFact
from data.prompts import Phrasing, Prompt, fact_prompts, put_question
from data.recipes import GREEDY, Recipe, Sampling
from data.rung_part import choose_probes, choose_prompts
from data.scenarios import Scenario
from objectives.answers.generate import generate
from objectives.answers.request import (
    BASE,
    Continuation,
    Request,
    never,
    refuse_to_go_on,
    stoppable,
)
from objectives.answers.verify import verify_greedy
from objectives.bank.bank import Bank
from objectives.judges.base import Judge, judge_answers
from objectives.measures.divergence import mean_kl_nats
from objectives.measures.drift import mean_cross_entropy_nats
from objectives.models.base import BaseModel, ModelError
from objectives.models.machine.memory import is_out_of_memory

# What is asked while searching, and what only once a study has made its choice.
SEARCHED: tuple[Phrasing, ...] = ("validation",)
EVERYTHING: tuple[Phrasing, ...] = ("trained", "validation", "test", "reverse", "two_hop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measurement with the verdicts it rests on."""

    measurement: Measurement
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Questions:
    """What an adapter is asked: about facts, and the probes with the base's answers to them."""

    prompts: tuple[Prompt, ...]
    references: tuple[Continuation, ...]
    probe_verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A slot whose adapter is to be measured: greedily, and then under each of `samplings`.

    `noise_seed` fixes the samplings' draws. `is_part` asks only the part of the prompts that rungs
    ask.
    """

    slot: int
    noise_seed: int
    samplings: tuple[Sampling, ...] = ()
    is_part: bool = False


class Learning:
    """Trains and measures the adapters of one bank against its untouched base model.

    Making it asks the base everything once: `base` is the reference, `facts` are those it does not
    know, `already_known` those that are set aside. Of a `rung_share` below 1 that share of all
    prompts is what rungs ask, always the same.

    Whatever asks can be stopped: of a large model a measurement lasts minutes, and whoever is told
    to stop must have saved all trials and be gone within ten seconds. So `should_stop` is asked
    before every forward pass, and once it says so `AskingStopped` is raised, when making it as
    well. No slot has changed then, and measuring again gives what it would have given.
    """

    def __init__(
        self,
        base: BaseModel,
        scenario: Scenario,
        *,
        judge: Judge,
        slots: int,
        max_rank: int,
        gradient_checkpointing: bool = False,
        rung_share: float = 1.0,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        """Ask the base.

        Args:
            base: The model.
            scenario: What is taught and what must not be lost.
            judge: Decides about the answers.
            slots: How many adapters train at once.
            max_rank: The largest rank of one.
            gradient_checkpointing: As in `Bank`.
            rung_share: The share of the prompts that is asked where not everything is.
            should_stop: Whether to stop asking; quick, for it is asked often.

        Raises:
            AskingStopped: If `should_stop` says so.
            JudgeUnreachable: If the judge gives no reply.
            ModelError: If the bank or a prompt does not fit the model.
        """
        self._should_stop = should_stop
        self._gradient_checkpointing = gradient_checkpointing
        self.bank = self._make_bank(base, slots=slots, max_rank=max_rank)
        self._model = base
        self._judge = judge
        self._held_out = tuple(probe.statement for probe in scenario.probes if probe.statement)

        asked = self._ask_base(fact_prompts(scenario.facts, EVERYTHING, chat=base.chat))
        fact_verdicts = self._judge_answers(asked)
        known = scoring.known_facts(fact_verdicts)
        self.already_known: tuple[Fact, ...] = tuple(f for f in scenario.facts if f.id in known)
        self.facts: tuple[Fact, ...] = tuple(f for f in scenario.facts if f.id not in known)
        self._prompts = fact_prompts(self.facts, SEARCHED, chat=base.chat)
        self._test_references = [
            continuation
            for continuation in asked
            if continuation.answer.prompt.phrasing == "test"
            and continuation.answer.prompt.subject not in known
        ]
        self._known_facts = self._keep_known(scenario.known_facts)

        self._probe_prompts = [probe.prompt(chat=base.chat) for probe in scenario.probes]
        self._probe_references = self._ask_base(self._probe_prompts)
        self._probe_verdicts = self._judge_answers(self._probe_references)
        self._everything = _Questions(
            prompts=self._prompts,
            references=tuple(self._probe_references),
            probe_verdicts=self._probe_verdicts,
        )
        self._part = self._choose_part(scenario, rung_share)
        (self._base_nats,) = self._mean_nats([BASE])
        self._new_fact_verdicts = [
            verdict for verdict in fact_verdicts if verdict.answer.prompt.subject not in known
        ]
        self.base = self._score(
            self._new_fact_verdicts,
            self._probe_verdicts,
            GREEDY,
            epoch=0,
            tokens=0,
            drift_nats=self._drift(self._base_nats),
        )

    @property
    def rungs_ask_a_part(self) -> bool:
        """Return whether a turn that `is_part` asks less than another."""
        return self._part is not self._everything

    def _choose_part(self, scenario: Scenario, share: float) -> _Questions:
        """Return what rungs ask."""
        if share == 1:
            return self._everything
        # Of all facts, so that which of them the base knows does not matter to the others.
        chosen = frozenset(
            choose_prompts(
                fact_prompts(scenario.facts, SEARCHED, chat=self._model.chat), share=share
            )
        )
        known = [verdict.is_correct for verdict in self._probe_verdicts]
        places = choose_probes(self._probe_prompts, known, share=share)
        return _Questions(
            prompts=tuple(prompt for prompt in self._prompts if prompt in chosen),
            references=tuple(self._probe_references[place] for place in places),
            probe_verdicts=tuple(self._probe_verdicts[place] for place in places),
        )

    def use_slots(self, slots: int) -> None:
        """Train so many adapters at once from now on; the bank is empty then."""
        if slots != self.bank.slots:
            max_rank = self.bank.max_rank
            del self.bank  # there may be no room for both
            self.bank = self._make_bank(self._model, slots=slots, max_rank=max_rank)

    def _make_bank(self, base: BaseModel, *, slots: int, max_rank: int) -> Bank:
        try:
            return Bank(
                base,
                slots=slots,
                max_rank=max_rank,
                gradient_checkpointing=self._gradient_checkpointing,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError(
                f"slots: {slots} is not allowed; so many adapters of rank {max_rank} have no room "
                f"beside {base.name}; name fewer when a study is made, or smaller ranks, or a "
                "device with more memory"
            ) from error

    def begin(self, slot: int, recipe: Recipe, *, seed: int) -> None:
        """Let an empty slot train a new adapter on the facts the base does not know."""
        self.bank.admit(slot, recipe, partial(self.epoch_texts, recipe, seed), seed=seed)

    def epoch_texts(self, recipe: Recipe, seed: int, epoch: int) -> tuple[str, ...]:
        """Return the training texts of one epoch of a trial."""
        documents = epoch_documents(self.facts, self._known_facts, recipe, seed=seed, epoch=epoch)
        return tuple(document.text for document in documents)

    def measure(self, turns: Sequence[Turn]) -> list[tuple[Measured, ...]]:
        """Return for every turn its greedy measurement, then those under its own samplings.

        All slots are asked in one batch. Under a sampling only recall is asked anew; knowledge
        loss and drift repeat the greedy values. Greedy decoding is not measured twice.

        Raises:
            AskingStopped: If it was to stop.
            JudgeUnreachable: If the judge gives no reply.
        """
        asked = [self._part if turn.is_part else self._everything for turn in turns]
        requests = [
            request
            for turn, questions in zip(turns, asked, strict=True)
            for sampling in self._samplings(turn)
            for request in _ask(questions.prompts, turn.slot, sampling, turn.noise_seed)
        ]
        continuations = iter(self._ask(requests))
        slots = [turn.slot for turn in turns]
        probed = self._probe(turns, asked)
        nats = self._mean_nats(slots)
        return [
            tuple(
                self._score(
                    self._judge_answers(
                        list(islice(continuations, _count_answers(questions.prompts, sampling)))
                    ),
                    probes,
                    sampling,
                    questions=questions,
                    epoch=self.bank.progress(turn.slot).epoch,
                    tokens=self.bank.progress(turn.slot).trained_tokens,
                    drift_nats=self._drift(turn_nats),
                )
                for sampling in self._samplings(turn)
            )
            for turn, questions, probes, turn_nats in zip(turns, asked, probed, nats, strict=True)
        ]

    def on_part(self, measured: Measured) -> Measurement:
        """Return the part of a greedy measurement of everything that a rung would have asked.

        It is what measuring the same adapter with `is_part` gives, without asking it again.
        """
        if not self.rungs_ask_a_part:
            return measured.measurement
        whole, part = measured.measurement, self._part
        asked = {*part.prompts, *(each.answer.prompt for each in part.references)}
        own = [verdict for verdict in measured.verdicts if verdict.answer.prompt in asked]
        return self._score(
            [verdict for verdict in own if verdict.answer.prompt.phrasing != "probe"],
            [verdict for verdict in own if verdict.answer.prompt.phrasing == "probe"],
            whole.sampling,
            questions=part,
            epoch=whole.epoch,
            tokens=whole.trained_tokens,
            drift_nats=whole.drift_nats,
        ).measurement

    def measure_everything(
        self,
        slot: int,
        *,
        epoch: int = 0,
        trained_tokens: int = 0,
        sampling: Sampling = GREEDY,
        noise_seed: int = 0,
    ) -> Measured:
        """Return a slot's measurement over all phrasings, test wordings included.

        A loaded adapter does not know how long it was trained: `epoch` and `trained_tokens` tell.
        Under a `sampling` that draws, `noise_seed` fixes what it draws; probes are asked greedily.
        """
        prompts = fact_prompts(self.facts, EVERYTHING, chat=self._model.chat)
        requests = list(_ask(prompts, slot, sampling, noise_seed))
        answered = self._ask(requests)
        (probed,) = self._verify_probes([slot], self._everything)
        (nats,) = self._mean_nats([slot])
        measured = self._score(
            self._judge_answers(answered),
            self._judge_answers(probed),
            sampling,
            epoch=epoch,
            tokens=trained_tokens,
            drift_nats=self._drift(nats),
        )
        with self._asking():
            kl_nats = mean_kl_nats(self._model, self._test_references, slot=slot, router=self.bank)
        measurement = replace(measured.measurement, kl_nats=kl_nats)
        if sampling != GREEDY:
            (sampled,) = self.measure_samplings(slot, [sampling], noise_seed=noise_seed)
            measurement = replace(
                measurement,
                loss_under_sampling=sampled.knowledge_loss,
                base_loss_under_sampling=sampled.base_loss,
            )
        return replace(measured, measurement=measurement)

    def measure_samplings(
        self, slot: int, samplings: Sequence[Sampling], *, noise_seed: int
    ) -> tuple[SamplingMeasurement, ...]:
        """Return what a slot's adapter recalls and gets wrong under each sampling.

        All are asked in one batch, the base too.
        """
        probes = self._probe_prompts
        asked = ((slot, self._prompts), (slot, probes), (BASE, probes))
        requests = [
            request
            for sampling in samplings
            for reader, prompts in asked
            # Probes are asked once: each is known or not.
            for request in _ask(
                prompts,
                reader,
                sampling
                if prompts is self._prompts
                else replace(sampling, num_return_sequences=1),
                noise_seed,
            )
        ]
        answered = iter(self._ask(requests))

        def judge_next(count: int) -> tuple[Verdict, ...]:
            return self._judge_answers(list(islice(answered, count)))

        def lost(verdicts: Sequence[Verdict]) -> Estimate:
            return scoring.knowledge_loss(scoring.ring_changes(self._probe_verdicts, verdicts))

        return tuple(
            SamplingMeasurement(
                sampling=sampling,
                recall=scoring.score_recall(judge_next(_count_answers(self._prompts, sampling))),
                knowledge_loss=lost(judge_next(len(probes))),
                base_loss=lost(judge_next(len(probes))),
            )
            for sampling in samplings
        )

    def fits(self, sampling: Sampling) -> bool:
        """Return whether the model's context has room for a sampling's longest answers."""
        return self._longest_prompt_tokens + sampling.max_new_tokens <= self._model.context_tokens

    @cached_property
    def _longest_prompt_tokens(self) -> int:
        prompts = (*self._prompts, *self._probe_prompts)
        encoded = (self._model.encode_prompt(prompt.text, prompt.style) for prompt in prompts)
        return max(map(len, encoded))

    @staticmethod
    def _samplings(turn: Turn) -> tuple[Sampling, ...]:
        return (GREEDY, *(sampling for sampling in turn.samplings if sampling != GREEDY))

    def _keep_known(self, facts: Sequence[KnownFact]) -> tuple[KnownFact, ...]:
        """Return those the base answers right: only what is known can be rehearsed."""
        prompts = [
            Prompt(
                text=put_question(fact.question, "qna"),
                style="qna",
                phrasing="probe",
                subject=fact.question,
                question=fact.question,
                accepted=(fact.answer,),
                ring=fact.ring,
            )
            for fact in facts
        ]
        verdicts = self._judge_answers(self._ask_base(prompts))
        return tuple(
            fact for fact, verdict in zip(facts, verdicts, strict=True) if verdict.is_correct
        )

    def _ask_base(self, prompts: Sequence[Prompt]) -> list[Continuation]:
        requests = [Request(prompt=p, slot=BASE, sampling=GREEDY, seed=0) for p in prompts]
        return self._ask(requests)

    def _ask(self, requests: Sequence[Request]) -> list[Continuation]:
        with self._asking():
            return generate(self._model, requests, router=self.bank)

    def _probe(
        self, turns: Sequence[Turn], asked: Sequence[_Questions]
    ) -> list[tuple[Verdict, ...]]:
        """Return the verdicts on every turn's probes; those who are asked alike go together."""
        verdicts: dict[tuple[int, _Questions], tuple[Verdict, ...]] = {}
        for questions in dict.fromkeys(asked):
            slots = [t.slot for t, own in zip(turns, asked, strict=True) if own is questions]
            for slot, answered in zip(slots, self._verify_probes(slots, questions), strict=True):
                verdicts[slot, questions] = self._judge_answers(answered)
        return [verdicts[turn.slot, own] for turn, own in zip(turns, asked, strict=True)]

    def _verify_probes(
        self, slots: Sequence[int], questions: _Questions
    ) -> list[list[Continuation]]:
        with self._asking():
            return verify_greedy(self._model, questions.references, slots, router=self.bank)

    def _asking(self) -> AbstractContextManager[None]:
        return stoppable(self._model.model, self._should_stop)

    def _judge_answers(self, continuations: Sequence[Continuation]) -> tuple[Verdict, ...]:
        # A judge that is slow itself asks between its own passes.
        refuse_to_go_on(self._should_stop)
        return judge_answers(self._judge, [continuation.answer for continuation in continuations])

    def _drift(self, nats: float | None) -> float | None:
        if nats is None or self._base_nats is None:
            return None
        return nats - self._base_nats

    def _mean_nats(self, slots: Sequence[int]) -> tuple[float | None, ...]:
        if not self._held_out:
            return (None,) * len(slots)
        with self._asking():
            return mean_cross_entropy_nats(
                self._model, self._held_out, slots=slots, router=self.bank
            )

    def _score(
        self,
        fact_verdicts: Sequence[Verdict],
        probe_verdicts: Sequence[Verdict],
        sampling: Sampling,
        *,
        epoch: int,
        tokens: int,
        drift_nats: float | None,
        questions: _Questions | None = None,
    ) -> Measured:
        questions = questions or self._everything
        rings = scoring.ring_changes(questions.probe_verdicts, probe_verdicts)
        # Probes are asked greedily and once: they belong to the greedy measurement.
        verdicts = tuple(
            (*fact_verdicts, *probe_verdicts) if sampling == GREEDY else fact_verdicts
        )
        return Measured(
            measurement=Measurement(
                epoch=epoch,
                sampling=sampling,
                recall=scoring.score_recall(fact_verdicts),
                knowledge_loss=scoring.knowledge_loss(rings),
                recall_parts=scoring.recall_parts(fact_verdicts),
                rings=rings,
                drift_nats=drift_nats,
                # Of a part of the probes fewer are lost, and as many facts learned.
                fuar=scoring.fuar(rings, self._new_fact_verdicts, fact_verdicts)
                if questions is self._everything
                else None,
                trained_tokens=tokens,
                generated_tokens=sum(verdict.answer.tokens for verdict in verdicts),
            ),
            verdicts=verdicts,
        )


def _ask(
    prompts: Sequence[Prompt], slot: int, sampling: Sampling, noise_seed: int
) -> Iterator[Request]:
    """Yield what to ask: every prompt, as often as the sampling returns answers."""
    for sequence in range(sampling.num_return_sequences):
        for prompt in prompts:
            yield Request(
                prompt=prompt,
                slot=slot,
                sampling=sampling,
                seed=noise_seed,
                sequence=sequence,
            )


def _count_answers(prompts: Sequence[Prompt], sampling: Sampling) -> int:
    return len(prompts) * sampling.num_return_sequences
