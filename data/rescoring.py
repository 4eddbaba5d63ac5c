"""Scores a recorded measurement again from verdicts about its answers, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data import scoring
from data.measurements import Measurement, Verdict


def rescore(
    measurement: Measurement,
    verdicts: Sequence[Verdict],
    *,
    base: Sequence[Verdict],
    probes: Sequence[Verdict] | None,
) -> Measurement:
    """Return a measurement with every figure that rests on verdicts computed from these.

    From the recorded verdicts that is the recorded measurement, figure by figure; from those of
    another judge about the same answers it is what a study with that judge would have measured.
    Which facts are new stays as it was decided: the novelty gate is not passed again.

    Args:
        measurement: As recorded; settings, costs and drift are taken from it.
        verdicts: About its answers; probes among them are ignored.
        base: About everything the untouched base was asked, probes included, by the same judge.
        probes: About the adapter's greedy answers to the probes, by the same judge; what is no
            probe among them is ignored. None, or without a probe, where they are not stored: then
            the rings and the knowledge loss stay as recorded.

    Raises:
        ValueError: If base and adapter were not asked the same probes, or one probe twice.
    """
    facts = [verdict for verdict in verdicts if not _is_probe(verdict)]
    probed = [verdict for verdict in probes or () if _is_probe(verdict)]
    rings = scoring.ring_changes(base, probed) if probed else measurement.rings
    loss = scoring.knowledge_loss(rings) if probed else measurement.knowledge_loss
    return replace(
        measurement,
        recall=scoring.score_recall(facts),
        recall_parts=scoring.recall_parts(facts),
        rings=rings,
        knowledge_loss=loss,
        fuar=scoring.fuar(rings, base, facts),
    )


def _is_probe(verdict: Verdict) -> bool:
    return verdict.answer.prompt.phrasing == "probe"
