"""What is said of the judge, before and after it was checked against people."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from analysis.judging import say_judge
from data.agreement import Agreement, correct_recall
from data.measurements import Estimate

if TYPE_CHECKING:
    from tests.analysis.conftest import StudyMaker

GOOD = Agreement(
    true_positives=90, false_positives=2, false_negatives=10, true_negatives=98, unjudged=0
)


def test_an_unchecked_judge_is_named_and_recall_is_called_uncorrected(maker: StudyMaker) -> None:
    said = say_judge(maker.add((8, 0.9, 0.02)).findings())
    assert "agreement with people was not measured" in said
    assert "uncorrected" in said


def test_recall_is_corrected_by_enough_labels_of_the_study(maker: StudyMaker) -> None:
    findings = replace(maker.add((8, 0.81, 0.02)).findings(), agreement=GOOD)
    said = say_judge(findings)
    assert "Of 200 answers of this study that people labelled it accepted 90 %" in said
    # By hand: (0.81 + 0.98 - 1) / (0.90 + 0.98 - 1) = 0.79 / 0.88.
    corrected = correct_recall(Estimate(value=0.81, low=0.76, high=0.86, count=23), GOOD)
    assert corrected.value == pytest.approx(0.79 / 0.88)
    assert "recall in the search of 81 % is 90 % (" in said


def test_too_few_labels_correct_nothing(maker: StudyMaker) -> None:
    few = replace(GOOD, true_negatives=10)
    said = say_judge(replace(maker.add((8, 0.81, 0.02)).findings(), agreement=few))
    assert "uncorrected: " in said
