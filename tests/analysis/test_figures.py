"""What the figures draw, and that they draw something sensible when nothing was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from analysis import figures
from data.recipes import Sampling

if TYPE_CHECKING:
    from tests.analysis.conftest import StudyMaker


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_the_front_has_the_loss_across_and_the_recall_upwards(three_trials: StudyMaker) -> None:
    drawn = traces(figures.draw_front(three_trials.findings()))

    assert (drawn["untouched model"].x, drawn["untouched model"].y) == ((0.0,), (0.0,))
    assert (drawn["recommended"].x, drawn["recommended"].y) == ((0.02,), (0.85,))
    assert (drawn["pruned"].x, drawn["pruned"].y) == ((0.0,), (0.04,))


def test_each_side_of_rehearsal_has_a_front_of_its_own_up_to_the_reference(
    three_trials: StudyMaker,
) -> None:
    drawn = traces(figures.draw_front(three_trials.findings()))

    # Without trial 1, (0.20, 0.50) is on the front too; the last step runs to the bound of 0.5.
    assert drawn["front without rehearsal"].x == (0.20, 0.30, 0.5)
    assert drawn["front without rehearsal"].y == (0.50, 0.90, 0.90)
    assert drawn["front with rehearsal"].x == (0.01, 0.02, 0.5)
    assert drawn["front with rehearsal"].y == (0.40, 0.85, 0.85)


def test_hovering_tells_recipe_sampling_and_epoch_without_markup_of_others(
    maker: StudyMaker,
) -> None:
    sampling = Sampling(name="<img src=x>", temperature=0.7)
    drawn = traces(
        figures.draw_front(maker.add((4, 0.5, 0.1), rank=32, sampled=(sampling, 0.9)).findings())
    )
    (text,) = drawn["recommended"].hovertext

    assert "trial 0, 4 epochs" in text
    assert "rank 32" in text
    assert "&lt;img src=x&gt; (temperature 0.7)" in text
    assert "<img" not in text


def test_styles_stand_beside_the_base_with_their_intervals(maker: StudyMaker) -> None:
    drawn = traces(figures.draw_recall_by_style(maker.add((4, 0.9, 0.02)).findings()))

    assert list(drawn) == ["untouched model", "trial 0, 4 epochs"]
    bars = drawn["trial 0, 4 epochs"]
    assert bars.x == ("plain", "qna", "conversation", "assistant")
    assert bars.error_y.array == pytest.approx((0.05,) * 4)
    assert bars.error_y.arrayminus == pytest.approx((0.05,) * 4)


def test_rings_show_losses_of_the_known_and_gains_of_the_others(maker: StudyMaker) -> None:
    lost, gained = figures.draw_rings(maker.add((4, 0.9, 0.05)).findings()).data

    assert lost.y == (2 / 40, 2 / 40)
    assert gained.y == (1 / 10, 1 / 10)


def test_curves_have_a_line_for_each_trial_and_greedy_points_only(maker: StudyMaker) -> None:
    maker.add((4, 0.5, 0.1), (8, 0.8, 0.2), sampled=(Sampling(name="warm"), 0.7))
    recall, loss = figures.draw_learning_curves(maker.findings())

    assert [(line.x, line.y) for line in recall.data] == [((4000, 8000), (0.5, 0.8))]
    assert [line.y for line in loss.data] == [(0.1, 0.2)]


def test_progress_adds_the_tokens_of_all_trials(maker: StudyMaker) -> None:
    (line,) = figures.draw_progress(maker.add((4, 0.5, 0.1)).add((2, 0.6, 0.1)).findings()).data

    assert line.x == (4000, 6000)


def test_without_trials_every_figure_says_why_it_is_empty(maker: StudyMaker) -> None:
    findings = maker.findings()
    empty = (
        figures.draw_recall_by_style(findings),
        figures.draw_rings(findings),
        figures.draw_importance(findings),
        *figures.draw_learning_curves(findings),
        figures.draw_progress(findings),
    )

    for figure in empty:
        assert figure.layout.annotations[0].text.startswith("not measured: ")
    assert list(traces(figures.draw_front(findings))) == ["untouched model"]
