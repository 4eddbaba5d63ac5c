"""Remembers verdicts, so that no judge is asked twice about the same answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from data.measurements import Answer, Label, Verdict
from objectives.judges.base import Judge

# Verdicts are written after so many, so that a judge that fails late loses few.
_WRITE_EVERY = 256


class VerdictCache(Protocol):
    """Keeps labels under keys; what it has lost is asked again."""

    def read(self, keys: Sequence[str]) -> Mapping[str, Label]:
        """Return the labels of those keys that are known."""
        ...

    def write(self, labels: Mapping[str, Label]) -> None:
        """Keep labels; a key that is already there may keep its label."""
        ...


class MemoryCache:
    """Keeps labels as long as the process lives; beyond `most` it forgets the oldest."""

    def __init__(self, most: int = 500_000) -> None:
        """Begin empty."""
        self._most = most
        self._labels: dict[str, Label] = {}

    def read(self, keys: Sequence[str]) -> Mapping[str, Label]:
        """Return the labels of those keys that are known."""
        return {key: self._labels[key] for key in keys if key in self._labels}

    def write(self, labels: Mapping[str, Label]) -> None:
        """Keep labels."""
        self._labels.update(labels)
        while len(self._labels) > self._most:
            del self._labels[next(iter(self._labels))]


class CachedJudge:
    """Another judge, asked only about answers that it has not judged before.

    "Unjudged" is never kept: such an answer is asked about again the next time.
    """

    def __init__(self, judge: Judge, cache: VerdictCache) -> None:
        """Take the judge and where its verdicts are kept, which several judges may share."""
        self._judge = judge
        self._cache = cache

    @property
    def name(self) -> str:
        """Return the judge's own name: a cache changes no verdict."""
        return self._judge.name

    @property
    def unreachable_reason(self) -> str | None:
        """Return why the judge got no reply to something, None if it did or needs none."""
        return self._judge.unreachable_reason

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        """Return one verdict per answer, in their order; equal answers are judged once."""
        name = self.name
        keys = [verdict_key(answer, name) for answer in answers]
        answer_of = dict(zip(keys, answers, strict=True))
        labels: dict[str, Label] = dict(self._cache.read(list(answer_of)))
        unknown = [key for key in answer_of if key not in labels]
        for start in range(0, len(unknown), _WRITE_EVERY):
            asked = unknown[start : start + _WRITE_EVERY]
            verdicts = self._judge.judge([answer_of[key] for key in asked])
            found = {key: verdict.label for key, verdict in zip(asked, verdicts, strict=True)}
            labels |= found
            if kept := {key: label for key, label in found.items() if label != "unjudged"}:
                self._cache.write(kept)
        return tuple(
            Verdict(answer=answer, label=labels[key], judge=name)
            for answer, key in zip(answers, keys, strict=True)
        )


def verdict_key(answer: Answer, judge: str) -> str:
    """Return a digest of what a verdict depends on: question, accepted texts, answer, judge."""
    prompt = answer.prompt
    parts = [prompt.question, list(prompt.accepted), answer.text, judge]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
