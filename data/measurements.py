"""What was observed: answers, verdicts, and the measurement of one adapter at one epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data.prompts import Prompt
from data.recipes import Sampling

# Raised whenever prompts, probes, judging or scoring change what a number means; only measurements
# with equal versions are compared.
MEASUREMENT_VERSION = 1

Label = Literal["correct", "incorrect", "not_attempted", "unjudged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said to a prompt: only `text` is judged, `tokens` counts what was generated."""

    prompt: Prompt
    text: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An answer and what a judge made of it."""

    answer: Answer
    label: Label
    judge: str

    @property
    def is_correct(self) -> bool:
        """Return whether the answer counts as right; unjudged answers are not right nor wrong."""
        return self.label == "correct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A proportion with its 95 % interval; `count` says how many facts or probes it rests on.

    `value`, `low` and `high` are None together, which means "not measured".
    """

    value: float | None
    low: float | None
    high: float | None
    count: int


NOT_MEASURED = Estimate(value=None, low=None, high=None, count=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingChange:
    """What happened to the probes of one ring.

    Of the `known` ones (by the base) `lost` are now wrong; of the `asked - known` others `gained`
    are now right. `loss` is lost / known, lower is better.
    """

    ring: str
    asked: int
    known: int
    lost: int
    gained: int
    loss: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallPart:
    """Recall apart: of one phrasing in one prompt style, or over all styles (`style` is None)."""

    phrasing: str
    style: str | None
    recall: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The two objectives of an adapter after `epoch` epochs under `sampling`, with their parts.

    `recall` is higher-is-better, over the validation phrasings and all prompt styles.
    `knowledge_loss` is lower-is-better and always greedy; with a sampling that is not greedy it
    repeats the greedy value. `drift_nats` is the mean increase in cross-entropy on held-out text
    in nats per token (lower is better). `fuar` is known facts lost per new fact gained (lower is
    better, None when nothing was gained).
    """

    epoch: int
    sampling: Sampling
    recall: Estimate
    knowledge_loss: Estimate
    recall_parts: tuple[RecallPart, ...]
    rings: tuple[RingChange, ...]
    drift_nats: float | None
    fuar: float | None
    trained_tokens: int
    generated_tokens: int
    version: int = MEASUREMENT_VERSION
    kl_nats: float | None = None
    loss_under_sampling: Estimate = NOT_MEASURED
    base_loss_under_sampling: Estimate = NOT_MEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingMeasurement:
    """One adapter under one sampling, over the validation phrasings and all prompt styles.

    `knowledge_loss` is the share of what the base knows, asked greedily, that the adapter gets
    wrong under the sampling; `base_loss` is the share that the base itself gets wrong under it. So
    their difference is the adapter's doing. Both are lower-is-better.
    """

    sampling: Sampling
    recall: Estimate
    knowledge_loss: Estimate
    base_loss: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCost:
    """What an adapter of a trial after `epoch` epochs takes, and how fast it answers.

    `parameters` are its trained weights and `file_bytes` their file. With the adapter and without
    it, in turns, the model was asked the same `prompts` questions greedily, all in one batch; the
    rates are medians, in generated tokens of all of them (higher is better).
    """

    trial: int
    epoch: int
    parameters: int
    file_bytes: int
    prompts: int
    tokens_per_second: float
    base_tokens_per_second: float


FloorName = Literal["base", "all facts", "best fact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What the untouched model recalls without training, told some facts in its prompt or none.

    `recall` is higher-is-better: greedy, over the validation phrasings and all prompt styles, as
    an adapter's at a rung. `context_tokens` is the mean number of tokens before a question (lower
    is better); an adapter needs none. Where the recall was not measured, `reason` says why and
    `context_tokens` is None.
    """

    name: FloorName
    recall: Estimate
    context_tokens: float | None
    reason: str | None = None
