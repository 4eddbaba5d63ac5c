"""Measures the bank beside PEFT on a GPU: `python -m benchmarks.gpu [--out FOLDER] [--minutes 9]`.

Three parts: the pocket model trained with 32 recipes, its 32 adapters asked, and a Llama of the
13B model's shape with random 4-bit weights, whose speed is that of a real one. It runs unattended:
what fails, does not fit the memory or has no time left is written down as not measured, and every
number is on disk as soon as there is one. Neither Optuna nor a database is needed.

A share of the device's limit is how many floating point operations the training needs per second,
of those that the same device does per second in a product of two large matrices. For a token it
needs two operations per weight in the forward pass and two in the backward pass: frozen weights
get no gradient. Unpacking 4-bit weights is no part of what is needed; it lowers the share.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners import lora
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers import PreTrainedTokenizerFast as Tokenizer

from benchmarks.measuring import RESULTS, Case, Timing, peak_memory_mib, take_turns, write_result
from benchmarks.peers.peft_parts import clip, lora_config, make_optimizer, pad_right
from data.formats import epoch_documents
from data.matching import match_answer
from data.prompts import PROMPT_STYLES, Prompt, cut_answer, fact_prompts
from data.recipes import GREEDY, Recipe
from data.scenarios import Scenario, load_scenario
from objectives.answers.generate import generate
from objectives.answers.request import Request
from objectives.bank import Bank, export_adapter
from objectives.bank.batches import Batch, count_predicted, cut_examples, make_batches
from objectives.learn import SEARCHED
from objectives.models.base import BaseModel
from objectives.models.gptq.four_bit import FourBitLinear, random_four_bit
from objectives.models.load import load_base_model
from objectives.models.machine.footprint import (
    Demand,
    ModelShape,
    estimate,
    shape_of_model,
    storing_of,
)
from objectives.models.machine.memory import is_out_of_memory, release_memory
from objectives.models.machine.memory_limit import cap_memory
from objectives.models.passes.reading import pad_left, reads_packed
from objectives.models.sources import POCKET

SEED = 20230312
RANKS = (4, 8, 16)
ROWS_PER_BATCH = 512
SHORT = range(24, 33)  # tokens of a text that the large model trains on

# The study the project began with; a recipe's epochs differ, and this is a usual number of them.
# With so many a trial comes to three rungs before its end, and is asked everything each time at
# the most. None is pruned, which makes it the longest that it can be.
STUDY_TRIALS = 40
STUDY_EPOCHS = 24
STUDY_ASKINGS = 4
ONE_NIGHT_HOURS = 8

TRAINING, ASKING = "pocket training", "pocket asking"
LARGE_TRAINING, LARGE_ASKING = "13B training", "13B asking"
SEQUENTIAL = "PEFT, one adapter at a time"
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    group_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much work is done, and where.

    `trials` is the whole work everywhere; slow ways do `sample` of them. `banks`, `large_banks`
    and `large_asked` are numbers of slots. Adapters learn for `teaching_epochs` before they are
    asked, answers have `new_tokens`, `large_texts` and `large_prompts` are counted per trial,
    `caps_gib` are sizes of smaller cards, and `limit_size` is the side of the matrices whose
    product shows the device's limit.
    """

    device: str
    runs: int
    facts: int
    trials: int
    sample: int
    epochs: int
    banks: tuple[int, ...]
    teaching_epochs: int
    new_tokens: int
    large: Shape
    large_texts: int
    large_banks: tuple[int, ...]
    large_asked: tuple[int, ...]
    large_prompts: int
    caps_gib: tuple[int, ...]
    limit_size: int


ON_A_GPU = Extent(
    device="cuda",
    runs=3,
    facts=23,
    trials=32,
    sample=4,
    epochs=2,
    banks=(1, 8, 32),
    teaching_epochs=6,
    new_tokens=16,
    large=Shape(
        hidden=5120, intermediate=13824, layers=40, heads=40, vocabulary=32000, group_size=128
    ),
    large_texts=12,
    large_banks=(1, 4, 8, 16, 32),
    large_asked=(1, 8, 16),
    large_prompts=8,
    caps_gib=(24, 12),
    limit_size=8192,
)

REHEARSAL = Extent(
    device="cpu",
    runs=1,
    facts=4,
    trials=4,
    sample=2,
    epochs=1,
    banks=(1, 2, 4),
    teaching_epochs=1,
    new_tokens=3,
    large=Shape(hidden=64, intermediate=96, layers=2, heads=4, vocabulary=2048, group_size=32),
    large_texts=4,
    large_banks=(1, 4),
    large_asked=(1, 2),
    large_prompts=2,
    caps_gib=(24, 12),
    limit_size=256,
)


class Record:
    """What was measured so far; `failed` says that something broke that had memory and time."""

    def __init__(self, name: str, folder: Path, *, deadline: float, extent: Extent) -> None:
        """Begin empty.

        Args:
            name: Of the benchmark and its file.
            folder: Where the file is.
            deadline: Until when something may be measured, on `time.monotonic`'s clock.
            extent: On which device, and how often.
        """
        self._name = name
        self._folder = folder
        self._deadline = deadline
        self._extent = extent
        self._timings: dict[str, list[Timing]] = {}
        self._facts: dict[str, str | int | float] = {}
        self.failed = False

    def note(self, part: str, what: str, value: str | int | float) -> None:
        """Print a number, or why there is none, and write it down."""
        self._facts[f"{part}: {what}"] = value
        print(f"{part}: {what}: {value}", flush=True)
        self._write()

    def attempt(self, part: str, what: str, work: Callable[[], None]) -> bool:
        """Do some work; return whether it could be done, and note why not."""
        try:
            work()
            return True
        except Exception as error:
            if is_out_of_memory(error):
                reason = "out of memory"
            else:
                self.failed = True
                reason = f"failed: {error!r}"
                traceback.print_exc()
        release_memory()
        self.note(part, what, f"{NOT_MEASURED}: {reason}")
        return False

    def measure(self, part: str, *cases: Case) -> list[Timing]:
        """Return the timings of cases that are run in turn, after each was run once untimed.

        If that first turn shows that there is no time left for the others, there are none.
        """
        synchronised = [replace(case, run=partial(self._run, case)) for case in cases]
        begun = time.monotonic()
        if begun < self._deadline:
            take_turns(synchronised, runs=1, warm_up=False)
            now = time.monotonic()
            if now + self._extent.runs * (now - begun) < self._deadline:
                timings = take_turns(synchronised, runs=self._extent.runs, warm_up=False)
                self._timings.setdefault(part, []).extend(timings)
                self._write()
                return timings
        for case in cases:
            self.note(part, case.name, f"{NOT_MEASURED}: out of time")
        return []

    def compare(self, part: str, timings: Sequence[Timing], *, peers: str | None = None) -> None:
        """Note how many times as fast as others' ways our ways among `timings` are.

        Args:
            part: Of the benchmark.
            timings: Of this part.
            peers: The part in which the others were timed, by default the same.
        """
        for theirs in self._timings.get(peers or part, ()):
            for ours in timings:
                if ours.is_ours and not theirs.is_ours:
                    ratio = theirs.median_seconds / ours.median_seconds
                    what = f"{ours.name}, times as fast as {theirs.name}"
                    self.note(part, what, round(ratio, 2))

    def _run(self, case: Case) -> float | None:
        outcome = case.run()
        synchronise(self._extent.device)
        return outcome

    def _write(self) -> None:
        write_result(self._name, self._timings, facts=self._facts, folder=self._folder)


def synchronise(device: str) -> None:
    """Wait until a GPU has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A recipe, its seed, and the texts of its epochs."""

    recipe: Recipe
    seed: int
    epoch_texts: Callable[[int], Sequence[str]]

    def batches(self, base: BaseModel, epoch: int) -> list[Batch]:
        """Return the batches that the bank makes of an epoch."""
        documents = map(base.encode_document, self.epoch_texts(epoch))
        recipe = self.recipe
        examples = cut_examples(documents, cutoff=recipe.cutoff, packing=recipe.packing)
        return make_batches(examples, recipe.batch_size)


def make_pocket_trials(scenario: Scenario, extent: Extent, *, epochs: int) -> list[Trial]:
    """Return trials of several ranks whose texts are equally long."""

    def make(number: int) -> Trial:
        recipe = Recipe(
            epochs=epochs,
            rank=RANKS[number % len(RANKS)],
            alpha=16,
            cutoff=96,
            warmup_steps=4,
            learning_rate=2e-3,
        )

        def epoch_texts(epoch: int) -> list[str]:
            facts = scenario.facts[: extent.facts]
            documents = epoch_documents(facts, (), recipe, seed=number, epoch=epoch)
            return [document.text for document in documents]

        return Trial(recipe=recipe, seed=number, epoch_texts=epoch_texts)

    return [make(number) for number in range(extent.trials)]


def admit(bank: Bank, trials: Sequence[Trial]) -> None:
    """Put a trial in each of an empty bank's first slots."""
    for slot, trial in enumerate(trials):
        bank.admit(slot, trial.recipe, trial.epoch_texts, seed=trial.seed)


def train_in_banks(base: BaseModel, trials: Sequence[Trial], *, slots: int) -> float:
    """Train so many trials at a time, each to its end; return the mean of their last losses."""
    losses = []
    for start in range(0, len(trials), slots):
        together = trials[start : start + slots]
        bank = Bank(base, slots=len(together), max_rank=max(RANKS))
        admit(bank, together)
        train_to_the_end(bank)
        losses += last_losses(bank)
    return fmean(losses)


def train_to_the_end(bank: Bank) -> None:
    """Train every trial of a full bank to its end."""
    while not all(bank.progress(slot).finished for slot in range(bank.slots)):
        bank.step()
        last_losses(bank)


def last_losses(bank: Bank) -> list[float]:
    """Return the loss of each slot's last step in a full bank.

    Raises:
        RuntimeError: If a trial has failed; it takes no further steps, which would look fast.
    """
    losses = []
    for slot in range(bank.slots):
        progress = bank.progress(slot)
        if progress.failure is not None or progress.loss_nats is None:
            raise RuntimeError(f"slot {slot}: {progress.failure or 'no step was taken'}")
        losses.append(progress.loss_nats)
    return losses


class PeftTraining:
    """One adapter's training as it is written by hand: AdamW in its fused form, and clipping."""

    def __init__(self, adapted: Any, recipe: Recipe, base: BaseModel) -> None:
        """Begin to train the one adapter of a PEFT model."""
        self._adapted = adapted.train()
        self._base = base
        self._parameters = [each for each in adapted.parameters() if each.requires_grad]
        self._optimizer, self._schedule = make_optimizer([self._parameters], [recipe])

    def train(self, batches: Sequence[Batch]) -> float:
        """Take a step with every batch; return the last one's loss."""
        for batch in batches:
            inputs = pad_right(batch, self._base.pad_id)
            on_device = {name: each.to(self._base.device) for name, each in inputs.items()}
            loss = self._adapted(**on_device, use_cache=False).loss
            self._optimizer.zero_grad()
            loss.backward()
            clip(self._parameters)
            self._optimizer.step()
            self._schedule.step()
        return float(loss.detach())


def wrap_in_peft(model: Any, recipe: Recipe) -> Any:
    """Return a model in which PEFT has put one new adapter; 4-bit modules are wrapped like dense.

    PEFT's own layer for dense linear modules needs of its base no more than sizes and a forward.
    """
    config = lora_config(recipe)
    config._register_custom_module({FourBitLinear: lora.Linear})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers it does not know, and of wrapping anew
        return get_peft_model(model, config)


def train_with_peft(base: BaseModel, trials: Sequence[Trial]) -> float:
    """Train one trial after the other in the same model; return the mean of their last losses."""
    losses = []
    for trial in trials:
        adapted = wrap_in_peft(base.model, trial.recipe)
        training = PeftTraining(adapted, trial.recipe, base)
        for epoch in range(trial.recipe.epochs):
            loss = training.train(trial.batches(base, epoch))
        losses.append(loss)
        adapted.unload()
    base.model.eval()
    return fmean(losses)


def measure_pocket_training(record: Record, scenario: Scenario, extent: Extent) -> None:
    """Train the pocket model with all trials: plain PEFT, and banks."""
    base, peer = (load_base_model(POCKET, device=extent.device) for _ in range(2))
    trials = make_pocket_trials(scenario, extent, epochs=extent.epochs)

    def bank_case(slots: int) -> Case:
        count = max(slots, extent.sample)
        return Case(
            name=f"bank of {slots}",
            run=partial(train_in_banks, base, trials[:count], slots=slots),
            share=count / len(trials),
            is_ours=True,
            settings=f"K = {slots}, ranks {RANKS}, batch 4",
        )

    timings = record.measure(
        TRAINING,
        Case(
            name=SEQUENTIAL,
            run=partial(train_with_peft, peer, trials[: extent.sample]),
            share=extent.sample / len(trials),
            settings="base model kept, AdamW fused, padded to the batch's longest, batch 4",
        ),
        *map(bank_case, extent.banks),
    )
    tokens = sum(
        count_predicted(batch)
        for trial in trials
        for epoch in range(extent.epochs)
        for batch in trial.batches(base, epoch)
    )
    for timing in timings:
        rate = tokens / timing.median_seconds
        record.note(TRAINING, f"{timing.name}, trained tokens per second", round(rate))
    record.compare(TRAINING, timings)


def measure_pocket_asking(record: Record, scenario: Scenario, extent: Extent) -> None:
    """Ask the pocket model's adapters about every fact: two ways of PEFT's, and ours."""
    base, peer = (load_base_model(POCKET, device=extent.device) for _ in range(2))
    trials = make_pocket_trials(scenario, extent, epochs=extent.teaching_epochs)
    bank = Bank(base, slots=len(trials), max_rank=max(RANKS))
    admit(bank, trials)
    train_to_the_end(bank)
    with TemporaryDirectory() as folder:
        for slot in range(len(trials)):
            export_adapter(bank, slot, Path(folder) / str(slot))
        adapted = PeftModel.from_pretrained(peer.model, f"{folder}/0", adapter_name="0")
        for slot in range(1, len(trials)):
            adapted.load_adapter(f"{folder}/{slot}", adapter_name=str(slot))
    adapted.eval()
    prompts = fact_prompts(scenario.facts[: extent.facts], ("trained",), ("qna",))
    sampling = replace(GREEDY, max_new_tokens=extent.new_tokens)

    def ask_ours() -> float:
        requests = [
            Request(prompt=prompt, slot=slot, sampling=sampling, seed=0)
            for slot in range(len(trials))
            for prompt in prompts
        ]
        continuations = generate(base, requests, router=bank, rows_per_batch=ROWS_PER_BATCH)
        return fmean(is_right(each.answer.prompt, each.answer.text) for each in continuations)

    def ask_one_by_one() -> float:
        recalls = []
        for slot in range(extent.sample):
            adapted.set_adapter(str(slot))
            recalls.append(ask_peft(adapted, peer, prompts, extent.new_tokens))
        return fmean(recalls)

    def ask_mixed() -> float:
        rows = [(str(slot), prompt) for slot in range(len(trials)) for prompt in prompts]
        recalls = []
        for start in range(0, len(rows), ROWS_PER_BATCH):
            names, asked = zip(*rows[start : start + ROWS_PER_BATCH], strict=True)
            recalls += [
                ask_peft(adapted, peer, asked, extent.new_tokens, adapter_names=list(names))
            ] * len(asked)
        return fmean(recalls)

    until = f"greedy, {extent.new_tokens} new tokens"
    timings = record.measure(
        ASKING,
        Case(
            name=SEQUENTIAL,
            run=ask_one_by_one,
            share=extent.sample / len(trials),
            settings=f"generate with a batch of all prompts per adapter, {until} or EOS",
        ),
        Case(
            name="PEFT, adapters mixed",
            run=ask_mixed,
            settings=f"generate with adapter_names, batches of {ROWS_PER_BATCH}, {until} or EOS",
        ),
        Case(
            name=f"bank of {len(trials)}",
            run=ask_ours,
            is_ours=True,
            settings=f"at most {ROWS_PER_BATCH} rows, {until}, EOS or the answer's end",
        ),
    )
    answers = len(trials) * len(prompts)
    for timing in timings:
        rate = answers / timing.median_seconds
        record.note(ASKING, f"{timing.name}, answers per second", round(rate, 1))
    record.compare(ASKING, timings)


@torch.inference_mode()
def ask_peft(
    adapted: Any, base: BaseModel, prompts: Sequence[Prompt], new_tokens: int, **routing: Any
) -> float:
    """Return the share of right answers that a PEFT model gives in one batch."""
    rows = pad_left(base, [tuple(base.encode_prompt(p.text, p.style)) for p in prompts])
    generated = adapted.generate(
        input_ids=rows.token_ids,
        attention_mask=rows.mask,
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=base.pad_id,
        **routing,
    )
    answers = generated[:, rows.token_ids.shape[1] :].tolist()
    return fmean(
        is_right(prompt, cut_answer(base.decode(ids)))
        for prompt, ids in zip(prompts, answers, strict=True)
    )


def is_right(prompt: Prompt, answer: str) -> bool:
    """Return whether an answer is accepted."""
    return match_answer(prompt.question, answer, prompt.accepted) == "correct"


def build_large(shape: Shape, tokenizer: Tokenizer, device: str) -> BaseModel:
    """Return a Llama with random 4-bit modules, bf16 elsewhere, that was never dense.

    It talks in the given tokenizer's tokens: all further ones are never the likeliest.
    """
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    generator = torch.Generator(device).manual_seed(SEED)
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            packed = random_four_bit(
                module.in_features,
                module.out_features,
                group_size=shape.group_size,
                generator=generator,
            )
            model.set_submodule(name, packed)
    for name, parameter in list(model.named_parameters()):
        value = torch.ones(parameter.shape, dtype=parameter.dtype, device=device)
        if parameter.ndim > 1:
            value.normal_(std=config.initializer_range, generator=generator)
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, nn.Parameter(value))
    head.weight.data[len(tokenizer) :] = 0
    with torch.device(device):  # its frequencies are no parameters, and were computed nowhere
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return BaseModel(
        name="random 4-bit Llama",
        source="random",
        digest=f"random {SEED}",
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
    )


class LargeModel:
    """The measurements of the large model; a trial's epoch is the same few short texts."""

    def __init__(self, record: Record, scenario: Scenario, extent: Extent) -> None:
        """Build the model and choose its texts."""
        self._record = record
        self._extent = extent
        tokenizer = load_base_model(POCKET, device="cpu").tokenizer
        self._base = build_large(extent.large, tokenizer, extent.device)
        recipe = Recipe(
            epochs=1_000_000,  # it is always stopped before
            rank=16,
            alpha=32,
            cutoff=max(SHORT),
            warmup_steps=4,
            learning_rate=2e-4,
        )
        documents = epoch_documents(scenario.facts, (), recipe, seed=SEED, epoch=0)
        texts = [
            document.text
            for document in documents
            if len(self._base.encode_document(document.text)) in SHORT
        ][: extent.large_texts]

        def make(number: int) -> Trial:
            def epoch_texts(epoch: int) -> list[str]:
                return random.Random(f"{number}/{epoch}").sample(texts, len(texts))

            return Trial(recipe=recipe, seed=number, epoch_texts=epoch_texts)

        self._trials = [make(number) for number in range(extent.trials)]
        batches = self._trials[0].batches(self._base, 0)
        self._steps = len(batches)
        self._tokens = sum(map(count_predicted, batches))
        texts_of_study = STUDY_TRIALS * STUDY_EPOCHS * len(scenario.facts) * len(recipe.formats)
        self._study_tokens = round(texts_of_study * self._tokens / len(texts))
        self._prompts = fact_prompts(scenario.facts, ("trained", "validation"), PROMPT_STYLES)
        searched = len(fact_prompts(scenario.facts, SEARCHED)) + len(scenario.probes)
        self._study_answers = STUDY_TRIALS * STUDY_ASKINGS * searched
        self._shape = shape_of_model(self._base.model)
        self._footprint = partial(estimate, self._shape, storing_of(self._base.model))
        self._demand = Demand(
            rank=recipe.rank,
            step_tokens=max(map(count_predicted, batches)),
            prompt_tokens=max(
                len(self._base.encode_prompt(p.text, p.style)) for p in self._prompts
            ),
            answer_tokens=extent.new_tokens,
        )
        self._operations = operations_per_token(self._shape, rank=recipe.rank)
        self._limit = measure_limit(extent)
        # The fastest of each part, in tokens per second.
        self._trained: dict[str, float] = {}
        self._answered: dict[str, float] = {}
        note = partial(record.note, LARGE_TRAINING)
        note("the device's limit, TFLOP/s in products of matrices", round(self._limit / 1e12, 3))
        note("operations needed per trained token, GFLOP", round(self._operations / 1e9, 3))
        note("rows end to end", str(reads_packed(self._base.model)))
        note("memory of the base model, MiB", round(peak_memory_mib()))
        note("texts per trial and epoch", len(texts))
        note("predicted tokens per trial and epoch", self._tokens)
        note(
            f"predicted tokens of the study ({STUDY_TRIALS} trials of {STUDY_EPOCHS} epochs with "
            f"{len(scenario.facts)} facts in {len(recipe.formats)} formats)",
            self._study_tokens,
        )
        note(
            f"answers of the study ({STUDY_ASKINGS} times {searched} questions for each trial)",
            self._study_answers,
        )

    def measure_sequential(self) -> None:
        """Time PEFT on the first trial, standing for all."""
        reset_peak_memory()
        trial = self._trials[0]
        adapted = wrap_in_peft(self._base.model, trial.recipe)
        try:
            training = PeftTraining(adapted, trial.recipe, self._base)
            batches = trial.batches(self._base, 0)
            self._measure_training(
                LARGE_TRAINING,
                Case(
                    name=SEQUENTIAL,
                    run=partial(training.train, batches),
                    share=1 / len(self._trials),
                    settings="PEFT's lora.Linear around the same 4-bit modules, wrapping not "
                    f"timed, AdamW fused, rank 16, all modules, batch 4, {self._steps} steps",
                ),
            )
        finally:
            adapted.unload()
            self._base.model.eval()

    def measure_banks(self, part: str = LARGE_TRAINING) -> None:
        """Time banks of more and more slots, until memory runs out."""
        recomputing = False
        for slots in self._extent.large_banks:
            while not self._record.attempt(
                part,
                _bank_name(slots, recomputing),
                partial(self._measure_bank, part, slots, recomputing),
            ):
                if recomputing:
                    return
                recomputing = True

    def measure_banks_within(self, cap_gib: int) -> None:
        """Time banks as if the device had less memory."""
        trained = f"{LARGE_TRAINING} within {cap_gib} GiB"
        asked = f"{LARGE_ASKING} within {cap_gib} GiB"
        is_capped = device_memory_mib(self._extent.device) is not None
        release_memory()
        if is_capped:
            cap_memory("cuda", cap_gib * 2**30)
        try:
            self.measure_banks(trained)
            # One number of adapters tells how fast a card of this size answers.
            for slots in self._extent.large_asked[-1:]:
                self._record.attempt(asked, f"bank of {slots}", partial(self._ask, asked, slots))
        finally:
            if is_capped:
                torch.cuda.set_per_process_memory_fraction(1.0)
        self.project(trained, asked)

    def measure_asking(self) -> None:
        """Time generation with a bank's adapters and with the untouched base, rows being equal."""
        for slots in self._extent.large_asked:
            ask = partial(self._ask, LARGE_ASKING, slots)
            if not self._record.attempt(LARGE_ASKING, f"bank of {slots}", ask):
                return

    def project(self, trained: str, asked: str) -> None:
        """Note how long the whole study would take at the best rates of two parts."""
        if trained not in self._trained or asked not in self._answered:
            self._record.note(trained, "hours for the study", f"{NOT_MEASURED}: see above")
            return
        train = self._study_tokens / self._trained[trained] / 3600
        tokens = self._study_answers * self._extent.new_tokens
        ask = tokens / self._answered[asked] / 3600
        self._record.note(trained, "hours for the study, training", round(train, 2))
        self._record.note(
            trained,
            f"hours for the study, asking ({self._extent.new_tokens} tokens an answer)",
            round(ask, 2),
        )
        total = train + ask
        self._record.note(trained, "hours for the study", round(total, 2))
        self._record.note(
            trained,
            f"within one night ({ONE_NIGHT_HOURS} hours)",
            "yes" if total <= ONE_NIGHT_HOURS else "no",
        )

    def _measure_bank(self, part: str, slots: int, recomputing: bool) -> None:
        reset_peak_memory()
        bank = Bank(
            self._base,
            slots=slots,
            max_rank=self._trials[0].recipe.rank,
            gradient_checkpointing=recomputing,
            halves_when_full=False,
        )
        admit(bank, self._trials[:slots])

        def train() -> float:
            for _ in range(self._steps):
                bank.step()
            return fmean(last_losses(bank))

        self._measure_training(
            part,
            Case(
                name=_bank_name(slots, recomputing),
                run=train,
                share=slots / len(self._trials),
                is_ours=True,
                settings=f"K = {slots}, rank 16, all modules, batch 4, {self._steps} steps"
                + (", gradient checkpointing" if recomputing else ""),
            ),
        )
        demand = replace(self._demand, gradient_checkpointing=recomputing)
        estimated = self._footprint(demand).training(slots) / 2**20
        name = f"{_bank_name(slots, recomputing)}, estimated memory, MiB"
        self._record.note(part, name, round(estimated))

    def _measure_training(self, part: str, case: Case) -> None:
        record = self._record
        for timing in record.measure(part, case):
            rate = len(self._trials) * self._tokens / timing.median_seconds
            if case.is_ours:
                self._trained[part] = max(rate, self._trained.get(part, 0.0))
            record.note(part, f"{case.name}, trained tokens per second", round(rate, 1))
            share = rate * self._operations / self._limit
            record.note(part, f"{case.name}, share of the device's limit", round(share, 4))
            hours = self._study_tokens / rate / 3600
            record.note(part, f"{case.name}, hours to train the study", round(hours, 2))
            peak, total = peak_memory_mib(), device_memory_mib(self._extent.device)
            record.note(part, f"{case.name}, peak memory, MiB", round(peak))
            if total is not None:
                share = round(peak / total, 3)
                record.note(part, f"{case.name}, share of the device's memory", share)
            record.compare(part, [timing], peers=LARGE_TRAINING)

    def _ask(self, part: str, slots: int) -> None:
        record, each = self._record, self._extent.large_prompts
        bank = Bank(self._base, slots=slots, max_rank=self._trials[0].recipe.rank)
        admit(bank, self._trials[:slots])
        # With B at zero an adapter changes nothing, but after a step it does.
        bank.step()
        sampling = replace(GREEDY, max_new_tokens=self._extent.new_tokens)

        def ask(uses_adapters: bool) -> float:
            # All prompts differ, because the same one is put to the untouched base only once.
            requests = [
                Request(
                    prompt=prompt,
                    slot=number // each if uses_adapters else -1,
                    sampling=sampling,
                    seed=0,
                )
                for number, prompt in enumerate(self._prompts[: slots * each])
            ]
            return sum(
                len(answer.token_ids) for answer in generate(self._base, requests, router=bank)
            )

        names = f"untouched base, {slots * each} rows", f"bank of {slots}"
        timings = record.measure(
            part,
            *(
                Case(
                    name=name,
                    run=partial(ask, uses_adapters),
                    share=slots / max(self._extent.large_asked),
                    is_ours=uses_adapters,
                    settings=f"{slots * each} prompts, greedy, {sampling.max_new_tokens} tokens",
                )
                for name, uses_adapters in zip(names, (False, True), strict=True)
            ),
        )
        for timing in timings:
            rate = (timing.outcomes[0] or 0) / timing.share / timing.median_seconds
            if timing.is_ours:
                self._answered[part] = max(rate, self._answered.get(part, 0.0))
            record.note(part, f"{timing.name}, generated tokens per second", round(rate, 1))


def operations_per_token(shape: ModelShape, *, rank: int) -> int:
    """Return the floating point operations that training needs for a token, as the module says.

    An adapter's weights need two more each for their own gradient. Attention between tokens of
    such short texts is nothing beside it.
    """
    weights = sum(each.in_features * each.out_features for each in shape.linears)
    weights += shape.hidden * shape.vocabulary
    return 4 * weights + 6 * rank * shape.adapter_width


def measure_limit(extent: Extent) -> float:
    """Return how many operations a second the device does in a product of two bf16 matrices."""
    size, runs = extent.limit_size, 10
    left, right = (
        torch.randn(size, size, device=extent.device, dtype=torch.bfloat16) for _ in range(2)
    )
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        for _ in range(runs):
            left @ right
        synchronise(extent.device)
        seconds.append((time.perf_counter() - begun) / runs)
    return 2 * size**3 / min(seconds)


def _bank_name(slots: int, recomputing: bool) -> str:
    return f"bank of {slots}" + (", recomputing" if recomputing else "")


def reset_peak_memory() -> None:
    """Count the device's peak memory from now on; a CPU's cannot be counted anew."""
    release_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def device_memory_mib(device: str) -> float | None:
    """Return a GPU's memory, None of a CPU."""
    if device != "cuda":
        return None
    return float(torch.cuda.get_device_properties(0).total_memory / 2**20)


def measure_large(record: Record, scenario: Scenario, extent: Extent) -> None:
    """Build the large model, train it in several ways, ask it, and train it on smaller cards."""
    large = LargeModel(record, scenario, extent)
    record.attempt(LARGE_TRAINING, SEQUENTIAL, large.measure_sequential)
    large.measure_banks()
    large.measure_asking()
    large.project(LARGE_TRAINING, LARGE_ASKING)
    for cap_gib in extent.caps_gib:
        large.measure_banks_within(cap_gib)


def main() -> int:
    """Run all parts; return 1 if something failed that was neither memory nor time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where gpu.json is written")
    parser.add_argument("--minutes", type=float, default=9, help="the most that may be taken")
    # Every part in a tiny shape on the CPU, to try the code where there is no GPU.
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        print("gpu: there is no CUDA device; nothing was measured")
        return 0
    # PEFT still reads an attribute of models that transformers has renamed.
    warnings.simplefilter("ignore", FutureWarning)
    if arguments.rehearse:
        torch.set_num_threads(1)  # a tiny model gains nothing from more, and loses on a busy CPU
    extent = REHEARSAL if arguments.rehearse else ON_A_GPU
    record = Record(
        "gpu_rehearsal" if arguments.rehearse else "gpu",
        arguments.out,
        deadline=time.monotonic() + 60 * arguments.minutes,
        extent=extent,
    )
    scenario = load_scenario(None)
    for part, measure in (
        (TRAINING, measure_pocket_training),
        (ASKING, measure_pocket_asking),
        (LARGE_TRAINING, measure_large),
    ):
        record.attempt(part, "all", partial(measure, record, scenario, extent))
    return int(record.failed)


if __name__ == "__main__":
    sys.exit(main())
