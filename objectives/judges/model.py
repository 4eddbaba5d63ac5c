"""A local language model as judge: how probable "yes" is as the next token, against "no"."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath

import torch
from torch import Tensor

from data.judge_prompts import GRADER, Wording, write_rubric
from data.measurements import Answer, Label, Verdict
from objectives.answers.batches import batch_rows
from objectives.answers.following import logits_after
from objectives.answers.request import BASE, UntouchedBase, never, refuse_to_go_on
from objectives.judges.rubric import judge_with_model
from objectives.models.base import BaseModel, ModelError
from objectives.models.machine.memory import with_rows_that_fit

# Below this joint probability of "yes" and "no" the model is not answering the question.
LEAST_JOINT_PROBABILITY = 0.05

_ROWS_PER_BATCH = 32

_Row = tuple[int, ...]
# Returns the log-probabilities (rows, vocabulary) of what follows each row of tokens.
NextTokenReader = Callable[[BaseModel, Sequence[_Row]], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNo:
    """The log-probabilities that a judge says yes and that it says no."""

    log_yes: float
    log_no: float

    @property
    def label(self) -> Label:
        """Return "unjudged" where neither is likely, and "incorrect" where both are equally."""
        joint = math.exp(self.log_yes) + math.exp(self.log_no)
        if not joint >= LEAST_JOINT_PROBABILITY:  # also where they are not numbers
            return "unjudged"
        return "correct" if self.log_yes > self.log_no else "incorrect"


class ModelJudge:
    """Asks a model of its own, never the one that is tuned, in one wording.

    An answer without a word is not attempted. An answer whose rubric does not fit the model's
    context, or about which the model says neither yes nor no, is unjudged.
    """

    def __init__(
        self,
        base: BaseModel,
        wording: Wording = GRADER,
        *,
        rows_per_batch: int = _ROWS_PER_BATCH,
        read: NextTokenReader | None = None,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        """Find how the model says yes and no.

        Args:
            base: A model loaded for judging alone.
            wording: How it is asked.
            rows_per_batch: The most answers it reads at once.
            read: Who reads; by default the model itself.
            should_stop: Asked before every pass; `AskingStopped` is raised once it says so.

        Raises:
            ModelError: If it carries adapters, cannot say yes or no, has a chat template that
                fails, or a context too small for the rubric.
        """
        if getattr(base.model, "_hf_peft_config_loaded", False) or hasattr(
            base.model, "peft_config"
        ):
            raise ModelError(
                f"judge.model: {base.name!r} carries adapters, and no adapted model may judge; "
                "name a model without them"
            )
        self._base = base
        self._wording = wording
        self._rows_per_batch = rows_per_batch
        self._read = read or read_next_tokens
        self._should_stop = should_stop
        self._special_tokens = _special_tokens_of(base)
        self._yes, self._no = _find_verdict_tokens(base)
        length = len(self._encode(question="", accepted=(), answer=""))
        if length >= base.context_tokens:
            raise ModelError(
                f"judge.model: {base.name!r} reads at most {base.context_tokens} tokens, and the "
                f"rubric alone has {length}; name a model with a longer context"
            )

    @property
    def name(self) -> str:
        """Return a name of the model, a digest of all that its verdicts depend on, the wording."""
        base = self._base
        parts = (
            base.digest,
            base.precision,
            base.tokenizer.chat_template,
            LEAST_JOINT_PROBABILITY,
        )
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        short = PurePath(base.name).name[:40]
        return f"model {short}@{digest[:12]} {self._wording.signature}"

    @property
    def unreachable_reason(self) -> None:
        """Return None: the model is here."""
        return None

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        """Return one verdict per answer, in their order.

        Raises:
            AskingStopped: If it was to stop.
        """
        return judge_with_model(
            answers,
            name=self.name,
            ask=lambda asked: [
                "unjudged" if score is None else score.label for score in self.score(asked)
            ],
        )

    def score(self, answers: Sequence[Answer]) -> list[YesNo | None]:
        """Return how the model votes on every answer; None where the rubric is too long for it.

        A vote depends on its own answer alone, up to the rounding of floating point numbers.
        """
        rows = [
            self._encode(
                question=answer.prompt.question,
                accepted=answer.prompt.accepted,
                answer=answer.text,
            )
            for answer in answers
        ]
        # The verdict itself takes a place, too.
        fitting = [n for n, row in enumerate(rows) if len(row) < self._base.context_tokens]
        if not fitting:
            return [None] * len(answers)
        votes = with_rows_that_fit(
            self._base.model,
            self._rows_per_batch,
            partial(self._vote, [rows[number] for number in fitting]),
            row_tokens=max(len(rows[number]) for number in fitting),
        )
        vote_of = dict(zip(fitting, votes, strict=True))
        return [vote_of.get(number) for number in range(len(answers))]

    def _vote(self, rows: Sequence[_Row], most_rows: int) -> list[YesNo]:
        """Return the vote on every rubric, reading so many at once."""
        vote_of: dict[int, YesNo] = {}
        for batch in batch_rows(rows, [0] * len(rows), most_rows):
            refuse_to_go_on(self._should_stop)
            following = self._read(self._base, [rows[place] for place in batch])
            yes = following[:, list(self._yes)].logsumexp(-1).tolist()
            no = following[:, list(self._no)].logsumexp(-1).tolist()
            for place, log_yes, log_no in zip(batch, yes, no, strict=True):
                vote_of[place] = YesNo(log_yes=log_yes, log_no=log_no)
        return [vote_of[place] for place in range(len(rows))]

    def _encode(self, *, question: str, accepted: Sequence[str], answer: str) -> _Row:
        base = self._base
        rubric = write_rubric(
            self._wording,
            question=question,
            accepted=accepted,
            answer=answer,
            special_tokens=self._special_tokens,
        )
        if not base.tokenizer.chat_template:
            return tuple(base.encode_prompt(rubric))
        try:
            # A model that thinks aloud is told not to; others ignore it.
            encoded = base.tokenizer.apply_chat_template(
                [{"role": "user", "content": rubric}],
                add_generation_prompt=True,
                return_dict=True,
                enable_thinking=False,
            )
        except Exception as error:  # whatever a template's code may raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(
                f"judge.model: the chat template of {base.name!r} fails: {reason}; name another "
                "model"
            ) from error
        return tuple(encoded["input_ids"])


@torch.no_grad()
def read_next_tokens(base: BaseModel, rows: Sequence[_Row]) -> Tensor:
    """Return the log-probabilities (rows, vocabulary) of what follows each row of tokens.

    A beginning that neighbouring rows share is read once, where the model allows it.
    """
    last = [slice(-1, None)] * len(rows)
    logits, places = logits_after(base, rows, [BASE] * len(rows), last, UntouchedBase())
    return logits[places].log_softmax(-1).cpu()


def _special_tokens_of(base: BaseModel) -> tuple[str, ...]:
    added = base.tokenizer.added_tokens_decoder.values()
    specials = {str(token.content) for token in added if token.special}
    return tuple(sorted(specials | set(map(str, base.tokenizer.all_special_tokens))))


def _find_verdict_tokens(base: BaseModel) -> tuple[_Row, _Row]:
    """Return the tokens that begin a yes and those that begin a no.

    Where the tokenizer has the words as whole tokens only those count; where it cuts them up their
    first tokens do, without such as begin both, for example a lone space.
    """
    yes, no = (_first_tokens(base, word, whole=True) for word in ("yes", "no"))
    if not yes or not no:
        yes, no = (_first_tokens(base, word, whole=False) for word in ("yes", "no"))
    unknown = {base.tokenizer.unk_token_id}
    yes, no = yes - no - unknown, no - yes - unknown
    if not yes or not no:
        raise ModelError(
            f"judge.model: the tokens of {base.name!r} cannot tell yes from no; name another model"
        )
    return tuple(sorted(yes)), tuple(sorted(no))


def _first_tokens(base: BaseModel, word: str, *, whole: bool) -> set[int]:
    forms = [
        f"{before}{cased}"
        for before in ("", " ")
        for cased in (word, word.capitalize(), word.upper())
    ]
    sequences = list(_token_sequences(base, forms))
    return {ids[0] for ids in sequences if ids and (len(ids) == 1 or not whole)}


def _token_sequences(base: BaseModel, forms: Iterable[str]) -> Iterable[list[int]]:
    """Yield the tokens of forms alone and within a text: some tokenizers put a space first."""

    def encode(text: str) -> list[int]:
        return list(base.tokenizer(text, add_special_tokens=False).input_ids)

    before = encode("\n")
    for form in forms:
        yield encode(form)
        within = encode(f"\n{form}")
        if within[: len(before)] == before:
            yield within[len(before) :]
