"""The sentence that answers the study's question, for every class of answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.verdict import Subject
from data.facts import Fact

if TYPE_CHECKING:
    from tests.analysis.conftest import StudyMaker

FACTS = tuple(Fact(question=f"Who won award {number}?", answer="Ann") for number in range(23))
SUBJECT = Subject(model="pocket", new=FACTS, known=())


def test_yes_names_the_adapter_its_recall_and_its_loss_with_intervals(maker: StudyMaker) -> None:
    conclusion = maker.add((12, 0.93, 0.02)).findings(subject=SUBJECT).conclusion

    assert conclusion.answer == "yes"
    assert conclusion.sentence == (
        "Yes. Trial 0 after 12 epochs answers 93 % (95 % interval 88–98 %) of novel questions "
        "about the 23 new facts right; of what the model knew it now gets 2 % (0–7 %) wrong."
    )


def test_intervals_that_end_at_the_bounds_are_a_yes(maker: StudyMaker) -> None:
    assert maker.add((1, 0.85, 0.05)).findings().conclusion.answer == "yes"


def test_an_interval_that_passes_a_bound_is_partly(maker: StudyMaker) -> None:
    conclusion = maker.add((1, 0.84, 0.06)).findings().conclusion
    assert conclusion.answer == "partly"
    assert conclusion.sentence.startswith(
        "Partly: the recall may be below 80 % and the loss may be above 10 %. Trial 0 after"
    )


def test_an_end_that_whole_percents_hide_is_said_more_exactly(maker: StudyMaker) -> None:
    conclusion = maker.add((1, 0.847, 0.02)).findings().conclusion
    assert conclusion.answer == "partly"
    assert conclusion.sentence.startswith("Partly: the recall may be below 80 % (79.7 %). Trial")
    assert "(95 % interval 80–90 %)" in conclusion.sentence


def test_a_member_trained_again_is_judged_by_that(maker: StudyMaker) -> None:
    repeated = [(0.90, 0.02), (0.94, 0.03), (0.92, 0.04)]
    findings = maker.add((8, 0.99, 0.01), repeated=repeated).findings(subject=SUBJECT)
    # By hand: means 0.92 and 0.03, both with a deviation of 0.02 or 0.01 over three seeds, whose
    # means Student's interval leaves open by 4.303 * 0.02 / sqrt(3) = 0.0497 and 0.0248; with the
    # facts' 0.05 that is 0.0705. The losses' lower ends are cut at 0: their mean is 0.
    assert findings.conclusion.answer == "yes"
    assert findings.conclusion.sentence == (
        "Yes. Trial 0 after 8 epochs, trained again with 3 fresh seeds, answers 92 % (95 % "
        "interval 85–99 %) of novel questions about the 23 new facts right; of what the model "
        "knew it now gets 3 % (0–9 %) wrong."
    )
    worse = [(0.60, 0.02), (0.58, 0.03), (0.62, 0.04)]
    other = maker.add((8, 0.99, 0.0), repeated=worse).findings(subject=SUBJECT)
    assert other.recommended is not None
    assert other.recommended.trial == 1
    assert other.conclusion.answer == "partly"
    assert other.conclusion.sentence.startswith("Partly: the recall stays below 80 %.")


def test_partly_says_that_recall_is_missing(maker: StudyMaker) -> None:
    conclusion = maker.add((12, 0.60, 0.02)).findings().conclusion

    assert conclusion.answer == "partly"
    assert conclusion.sentence.startswith("Partly: the recall stays below 80 %. Trial 0 after 12")


def test_partly_says_that_the_loss_is_too_high(maker: StudyMaker) -> None:
    conclusion = maker.add((12, 0.95, 0.30)).findings().conclusion

    assert conclusion.answer == "partly"
    assert conclusion.sentence.startswith("Partly: the loss is above 10 %.")


def test_no_says_how_far_the_best_came_when_none_beats_the_reference(maker: StudyMaker) -> None:
    maker.add((12, 0.04, 0.00)).add((1, 0.90, 0.80))
    conclusion = maker.findings(subject=SUBJECT).conclusion

    assert conclusion.answer == "no"
    assert conclusion.sentence.startswith("No. None of 2 trials taught the model these facts")
    assert "Trial 1 after 1 epoch answers 90 % (95 % interval 85–95 %)" in conclusion.sentence
    assert "80 % (75–85 %) wrong. Untouched, the model answers 0 %" in conclusion.sentence


def test_no_when_the_recall_cannot_be_told_from_the_bases(maker: StudyMaker) -> None:
    # 0.20 beats the reference of 0.05, but its interval begins at 0.20 - 0.15 = 0.05 < 0.10.
    conclusion = maker.add((4, 0.20, 0.01), width=0.15).findings(base_recall=0.10).conclusion

    assert conclusion.answer == "no"


def test_already_known_when_no_fact_is_new(maker: StudyMaker) -> None:
    conclusion = maker.findings(subject=Subject(model="m", new=(), known=FACTS)).conclusion

    assert conclusion.answer == "already known"
    assert "knew 23 of 23 facts" in conclusion.sentence


def test_cannot_tell_without_trials(maker: StudyMaker) -> None:
    conclusion = maker.findings().conclusion

    assert (conclusion.answer, conclusion.sentence) == (
        "cannot tell",
        "Cannot tell. No trial was run.",
    )


def test_cannot_tell_when_every_trial_failed_before_it_was_measured(maker: StudyMaker) -> None:
    conclusion = maker.add(state="failed", reason="loss became NaN").findings().conclusion

    assert conclusion.answer == "cannot tell"
    assert "None of 1 trial has both" in conclusion.sentence
    assert "(1 failed)" in conclusion.sentence


def test_cannot_tell_without_a_measured_base(maker: StudyMaker) -> None:
    assert maker.add((4, 0.9, 0.0)).findings(has_base=False).conclusion.answer == "cannot tell"


def test_cannot_tell_yet_while_trials_run_and_nothing_was_learned(maker: StudyMaker) -> None:
    conclusion = maker.add((1, 0.0, 0.0), state="running").findings().conclusion

    assert conclusion.answer == "cannot tell"
    assert conclusion.sentence.startswith("Cannot tell yet. 1 trial of 1 still runs")


def test_rehearsal_makes_a_difference_where_the_intervals_do_not_overlap(
    maker: StudyMaker,
) -> None:
    # Losses 0.02 ± 0.05 and 0.09 ± 0.05 overlap, recalls 0.95 ± 0.05 and 0.60 ± 0.05 do not.
    maker.add((4, 0.95, 0.02), rehearsal=3).add((4, 0.60, 0.09))

    assert maker.findings().conclusion.rehearsal == (
        "Rehearsal makes a difference in recall: with rehearsal (known facts mixed into the "
        "training text) the best member reaches a recall of 95 % at a loss of 2 % (trial 0); "
        "without, a recall of 60 % at a loss of 9 % (trial 1)."
    )


def test_overlapping_intervals_do_not_tell_whether_rehearsal_helps(maker: StudyMaker) -> None:
    maker.add((4, 0.90, 0.02), rehearsal=3).add((4, 0.86, 0.05))

    assert maker.findings().conclusion.rehearsal.startswith("Whether rehearsal helps cannot be")


def test_rehearsal_is_not_compared_when_only_one_side_counts(maker: StudyMaker) -> None:
    maker.add((4, 0.90, 0.02), rehearsal=3).add((4, 0.01, 0.05))

    assert maker.findings().conclusion.rehearsal.startswith("Only trials with rehearsal")


def test_without_a_front_nothing_is_said_about_rehearsal(maker: StudyMaker) -> None:
    assert maker.findings().conclusion.rehearsal == ""
