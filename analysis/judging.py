"""Says who judged, how far that judge agrees with people, and what recall is once corrected."""

from __future__ import annotations

from analysis.findings import Findings
from analysis.wording import say_estimate, say_share, show_text
from data.agreement import correct_recall, why_not_correctable


def say_judge(findings: Findings) -> str:
    """Return the judge's name, how far it agrees with people, and the recall corrected by that.

    Recall is corrected by what the judge made of labelled answers of this very study, if they are
    enough.
    """
    name = show_text(findings.record.fingerprint.get("judge", "not recorded"))
    agreement = findings.agreement
    if agreement is None:
        return (
            f"{name}. Its agreement with people was not measured for this study (remember judge "
            "check), so that recall is shown as it judged, uncorrected."
        )
    said = (
        f"{name}. Of {agreement.judged} answers of this study that people labelled it accepted "
        f"{say_estimate(agreement.sensitivity)} of the right ones and refused "
        f"{say_estimate(agreement.specificity)} of the wrong ones."
    )
    reason = why_not_correctable(agreement)
    if reason is not None:
        return f"{said} Recall is shown as it judged, uncorrected: {show_text(reason)}."
    best = findings.recommended
    if best is None:
        return said
    corrected = correct_recall(best.measurement.recall, agreement)
    return (
        f"{said} Corrected by that (Rogan and Gladen), the recommended member's recall in the "
        f"search of {say_share(best.recall)} is {say_estimate(corrected)}."
    )
