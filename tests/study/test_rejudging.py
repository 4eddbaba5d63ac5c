"""A study's answers judged again: the same judge gives every figure again, another its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from data.measurements import NOT_MEASURED, Answer, Label, Verdict
from data.recipes import GREEDY
from data.rescoring import rescore
from objectives.judges.matcher import Matcher
from search_spaces.recipe_space import RecipeSpace
from search_spaces.settings import fixed
from storage.reader import read_study, read_verdicts
from study.rejudging import Rejudged, judge_again

SitDown = Callable[..., AbstractContextManager[Any]]


class Always:
    """A judge that says the same of every answer, but of probes what the matcher says."""

    unreachable_reason = None

    def __init__(self, label: Label, *, probes: Label | None = None) -> None:
        self._label = label
        self._probes = probes

    @property
    def name(self) -> str:
        return f"always {self._label}"

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        return tuple(
            Verdict(answer=verdict.answer, label=self._label_of(verdict), judge=self.name)
            for verdict in Matcher().judge(answers)
        )

    def _label_of(self, verdict: Verdict) -> Label:
        if verdict.answer.prompt.phrasing == "probe":
            return self._probes or verdict.label
        return self._label


def test_every_figure_of_a_study_comes_again_from_its_stored_answers(
    sit_down: SitDown, space: RecipeSpace
) -> None:
    learns = replace(space, epochs=fixed(10), learning_rate=fixed(6e-3), rehearsal=fixed(0))
    with sit_down(trials=2, presets=("greedy", "simple-1"), space=learns) as sitting:
        assert sitting.run()
        record = read_study(sitting.storage, "tiny")
        judged = list(judge_again(sitting.storage, record, Matcher()))

    assert [each.kept for each in judged] == list(record.measurements)
    assert {each.kept.purpose for each in judged} >= {"base", "rung", "final"}
    assert any(each.kept.measurement.sampling != GREEDY for each in judged)
    assert any(each.measurement.recall.value for each in judged)
    assert any(each.measurement.fuar for each in judged)
    assert any(each.measurement.knowledge_loss.value for each in judged)
    for each in judged:
        assert each.measurement == each.kept.measurement
        assert each.changed == 0
        assert each.reproduces
        assert each.judged_probes


def test_another_judge_changes_what_it_decides_and_nothing_that_is_stored(
    sit_down: SitDown,
) -> None:
    with sit_down(trials=2, presets=("greedy", "simple-1")) as sitting:
        assert sitting.run()
        record = read_study(sitting.storage, "tiny")
        kind = list(judge_again(sitting.storage, record, Always("correct")))
        strict = list(judge_again(sitting.storage, record, Always("incorrect")))
        undecided = list(judge_again(sitting.storage, record, Always("unjudged")))
        lost = list(judge_again(sitting.storage, record, Always("correct", probes="incorrect")))
        stored = read_verdicts(sitting.storage, judged_last(kind).kept.id)

        assert read_study(sitting.storage, "tiny") == record
    assert len(kind) == len(strict) == len(undecided) == len(record.measurements)
    for each in kind:
        was, now = each.kept.measurement, each.measurement
        assert now.recall.value == 1
        assert now.knowledge_loss == was.knowledge_loss
        assert now.rings == was.rings
        assert (now.epoch, now.sampling, now.drift_nats) == (
            was.epoch,
            was.sampling,
            was.drift_nats,
        )
        assert (now.trained_tokens, now.generated_tokens) == (
            was.trained_tokens,
            was.generated_tokens,
        )
        assert {verdict.judge for verdict in each.verdicts} == {"always correct"}
    assert all(each.measurement.recall.value == 0 for each in strict)
    assert all(each.measurement.recall == NOT_MEASURED for each in undecided)
    # A base that knows nothing has nothing to lose.
    assert all(each.measurement.knowledge_loss == NOT_MEASURED for each in lost)
    last = judged_last(strict)
    assert last.changed == sum(
        old.label != new.label for old, new in zip(stored, last.verdicts, strict=True)
    )


def judged_last(judged: Sequence[Rejudged]) -> Rejudged:
    return max(judged, key=lambda each: each.kept.id)


def test_answers_to_probes_that_are_not_stored_leave_the_loss_as_it_was(
    sit_down: SitDown,
) -> None:
    with sit_down(trials=1) as sitting:
        assert sitting.run()
        record = read_study(sitting.storage, "tiny")
        assert record.base is not None
        base = read_verdicts(sitting.storage, record.base.id)
        kept = record.trials[0].measurements[-1]
        facts = [
            verdict
            for verdict in read_verdicts(sitting.storage, kept.id)
            if verdict.answer.prompt.phrasing != "probe"
        ]

    assert rescore(kept.measurement, facts, base=base, probes=None) == kept.measurement
    assert rescore(kept.measurement, facts, base=base, probes=facts) == kept.measurement
    with pytest.raises(ValueError, match="must be asked the same probes"):
        rescore(kept.measurement, facts, base=[], probes=base)


def test_a_study_without_a_base_has_nothing_to_judge(sit_down: SitDown) -> None:
    with sit_down(trials=1) as sitting:
        record = read_study(sitting.storage, "tiny")
        assert len(list(judge_again(sitting.storage, record, Matcher()))) == 1

        nothing = replace(record, base_measurements=())
        assert list(judge_again(sitting.storage, nothing, Matcher())) == []
