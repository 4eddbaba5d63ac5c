"""The settings of a trial as values: how it trains (`Recipe`) and how it answers (`Sampling`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

# `query+value` are the two modules that the first LoRA tools trained.
TargetModules = Literal["query+value", "attention", "mlp", "all"]
TARGET_MODULES: tuple[TargetModules, ...] = get_args(TargetModules)

TrainingFormat = Literal["statement", "plain", "qna", "conversation"]
TRAINING_FORMATS: tuple[TrainingFormat, ...] = get_args(TrainingFormat)

Packing = Literal["separate", "joined"]


class SettingError(ValueError):
    """A setting is out of its bounds; the message names the field, the value and the bound."""


def _require(holds: bool, field: str, value: object, bound: str) -> None:
    if not holds:
        raise SettingError(f"{field}: {value!r} is not allowed; it must be {bound}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The training settings of a trial.

    `cutoff` counts tokens, `warmup_steps` and `batch_size` count optimizer steps and examples per
    step. `rehearsal` is the number of known facts mixed into each epoch per new fact;
    `paraphrases` is the number of wordings of a question that the epochs draw from. The learning
    rate rises over the warm-up and then stays, so that every epoch count is a prefix of a longer
    run.
    """

    epochs: int
    rank: int
    alpha: float
    cutoff: int
    warmup_steps: int
    learning_rate: float
    target_modules: TargetModules = "all"
    formats: tuple[TrainingFormat, ...] = ("statement", "qna", "conversation")
    paraphrases: int = 1
    rehearsal: int = 0
    batch_size: int = 4
    packing: Packing = "separate"
    rslora: bool = False
    dropout: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for field in ("epochs", "rank", "paraphrases", "batch_size"):
            value = getattr(self, field)
            _require(value >= 1, field, value, "at least 1")
        for field in ("alpha", "learning_rate"):
            value = getattr(self, field)
            _require(0 < value < math.inf, field, value, "a finite number above 0")
        for field in ("warmup_steps", "rehearsal"):
            value = getattr(self, field)
            _require(value >= 0, field, value, "at least 0")
        _require(self.cutoff >= 8, "cutoff", self.cutoff, "at least 8 tokens")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        _require(0 <= self.weight_decay < 1, "weight_decay", self.weight_decay, "in [0, 1)")
        _require(bool(self.formats), "formats", self.formats, "a list of at least one format")
        for name in self.formats:
            _require(name in TRAINING_FORMATS, "formats", name, f"one of {TRAINING_FORMATS}")
        _require(
            self.target_modules in TARGET_MODULES,
            "target_modules",
            self.target_modules,
            f"one of {TARGET_MODULES}",
        )
        packings = get_args(Packing)
        _require(self.packing in packings, "packing", self.packing, f"one of {packings}")

    @property
    def scale(self) -> float:
        """Return what multiplies the adapter's output (Hu et al. 2021; rsLoRA: 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


# What narrows the choice of the next token; its value where it does nothing.
TRUNCATIONS: dict[str, float] = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "tfs": 1.0,
    "top_a": 0.0,
    "xtc_probability": 0.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn. The defaults change nothing; `do_sample=False` is greedy decoding.

    Without drawing, a `penalty_alpha` above 0 makes it contrastive search over `top_k` candidates.
    With `num_beams` above 1 it is beam search, drawn or not; `length_penalty` above 0 favours long
    beams, and `early_stopping` ends once as many are finished. Of `num_return_sequences` answers
    to a prompt each counts, so that recall is their mean, never their best. `min_length` counts
    prompt and answer.

    The meanings are those of transformers' `GenerationConfig`, cutoffs being probabilities; `tfs`
    (tail-free), `top_a`, mirostat, XTC and the dynamic temperature are those of
    text-generation-webui. With a `dynatemp` above 0 the temperature follows the entropy, from
    temperature - dynatemp to temperature + dynatemp; `temperature_last` puts it after all that
    narrows the choice. With `xtc_probability` all tokens of at least `xtc_threshold` but the
    unlikeliest of them are left out. `top_k`, `min_p`, the
    cutoffs, `top_a`, `mirostat_tau`, `penalty_alpha`, `no_repeat_ngram_size` and `min_length` are
    off at 0. Mirostat (version 2) aims at `mirostat_tau` bits of surprise per token.
    """

    name: str
    do_sample: bool = True
    temperature: float = 1.0
    dynatemp: float = 0.0
    temperature_last: bool = False
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    tfs: float = 1.0
    top_a: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.1
    penalty_alpha: float = 0.0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    num_return_sequences: int = 1
    min_length: int = 0
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        for field in ("temperature", "repetition_penalty", "encoder_repetition_penalty"):
            value = getattr(self, field)
            _require(0 < value < math.inf, field, value, "a finite number above 0")
        for field in ("top_p", "typical_p"):
            value = getattr(self, field)
            _require(0 < value <= 1, field, value, "above 0 and at most 1")
        for field in ("tfs", "top_a", "penalty_alpha", "xtc_probability"):
            value = getattr(self, field)
            _require(0 <= value <= 1, field, value, "from 0 to 1")
        for field in ("min_p", "epsilon_cutoff", "eta_cutoff"):
            value = getattr(self, field)
            _require(0 <= value < 1, field, value, "at least 0 and below 1")
        _require(
            0 <= self.dynatemp < self.temperature,
            "dynatemp",
            self.dynatemp,
            "at least 0 (off) and below the temperature",
        )
        _require(0 < self.xtc_threshold <= 1, "xtc_threshold", self.xtc_threshold, "in (0, 1]")
        for field in ("top_k", "no_repeat_ngram_size", "min_length"):
            value = getattr(self, field)
            _require(value >= 0, field, value, "at least 0 (0 is off)")
        _require(
            0 <= self.mirostat_tau < math.inf,
            "mirostat_tau",
            self.mirostat_tau,
            "a finite number of at least 0 (0 is off)",
        )
        _require(0 < self.mirostat_eta <= 1, "mirostat_eta", self.mirostat_eta, "in (0, 1]")
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _require(self.num_beams >= 1, "num_beams", self.num_beams, "at least 1 (1 is off)")
        _require(
            math.isfinite(self.length_penalty),
            "length_penalty",
            self.length_penalty,
            "a finite number",
        )
        _require(
            1 <= self.num_return_sequences <= (1000 if self.do_sample else 1),
            "num_return_sequences",
            self.num_return_sequences,
            "from 1 to 1000, and 1 where nothing is drawn",
        )
        if self.num_beams > 1:
            for field in ("penalty_alpha", "mirostat_tau", "xtc_probability"):
                value = getattr(self, field)
                _require(value == 0, field, value, "0 (off) with several num_beams")
        if self.is_contrastive:
            _require(not self.do_sample, "do_sample", True, "false with penalty_alpha")
            _require(self.top_k >= 2, "top_k", self.top_k, "at least 2 with penalty_alpha")
        if self.mirostat_tau:
            _require(self.do_sample, "do_sample", self.do_sample, "true with mirostat_tau")
            for field, off in TRUNCATIONS.items():
                value = getattr(self, field)
                _require(value == off, field, value, f"{off:g} (off) with mirostat_tau")

    @property
    def is_contrastive(self) -> bool:
        """Return whether answers are found by contrastive search."""
        return self.penalty_alpha > 0

    @property
    def what_decides(self) -> Sampling:
        """Return a sampling without name that draws the same tokens, one for all that do.

        What has no say in greedy decoding or with a single beam is as by default.
        """
        beams = {
            name: getattr(self, name) for name in ("num_beams", "length_penalty", "early_stopping")
        }
        if self.num_beams == 1:
            beams = {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False}
        if self.do_sample:
            return replace(self, name="", **beams)
        return Sampling(
            name="",
            do_sample=False,
            penalty_alpha=self.penalty_alpha,
            top_k=self.top_k if self.is_contrastive else 0,
            repetition_penalty=self.repetition_penalty,
            encoder_repetition_penalty=self.encoder_repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            min_length=self.min_length,
            max_new_tokens=self.max_new_tokens,
            **beams,
        )


GREEDY = Sampling(name="greedy", do_sample=False)
