"""The best members of another study are tried first, as long as this study's space has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.measurements import NOT_MEASURED, Estimate, Measurement
from data.recipes import GREEDY, Recipe, SettingError
from search_spaces.presets import find_preset
from search_spaces.recipe_space import named_space
from search_spaces.sampling_space import SamplingSpace
from search_spaces.settings import Range, fixed
from storage.database import open_storage
from storage.leases import LeaseBook
from storage.recorder import Recorder
from study.other_study import points_of_study
from study.spec import ConfigurationError, StartFromSpec, StudySpec

SPACE = named_space("default", hidden_size=128, context_tokens=512, longest_qna_tokens=40)
SAMPLINGS = SamplingSpace(presets=("greedy", "Shortwave"))
RECIPE = Recipe(
    epochs=8, rank=8, alpha=16, cutoff=96, warmup_steps=5, learning_rate=2e-3, rehearsal=2
)


def measured(epoch: int, recall: float, loss: float, sampling: str = "greedy") -> Measurement:
    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=0.0, high=1.0, count=50)

    return Measurement(
        epoch=epoch,
        sampling=find_preset(sampling),
        recall=estimate(recall),
        knowledge_loss=estimate(loss),
        recall_parts=(),
        rings=(),
        drift_nats=None,
        fuar=None,
        trained_tokens=100 * epoch,
        generated_tokens=10,
    )


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    """Return a study that starts from one with three trials, two of them on the front."""
    url = f"sqlite:///{tmp_path / 'earlier.db'}"
    storage = open_storage(url)
    recorder, leases = Recorder(storage, "earlier"), LeaseBook(storage)
    recorder.create_study_record(
        config=StudySpec().model_dump_json(), fingerprint={}, slots=1, seed=0
    )
    base = replace(measured(0, 0.0, 0.0), recall=replace(NOT_MEASURED, value=0.0))
    recorder.record_measurement(None, base, (), purpose="base")
    trials = [
        (replace(RECIPE, rank=4), [measured(2, 0.5, 0.02), measured(8, 0.7, 0.3)]),
        (replace(RECIPE, rank=16), [measured(8, 0.9, 0.05, "Shortwave")]),
        (replace(RECIPE, rank=32), [measured(8, 0.4, 0.4)]),
    ]
    for number, (recipe, measurements) in enumerate(trials):
        lease = leases.acquire("earlier", number, owner="test", seconds=60)
        assert lease is not None
        recorder.record_trial_started(
            lease, asked_index=number, recipe=recipe, sampling=GREEDY, seed=0
        )
        for each in measurements:
            recorder.record_measurement(lease, each, (), purpose="final")
    storage.close()
    return StudySpec(storage=url, out=str(tmp_path), start_from=StartFromSpec(study="earlier"))


def test_the_front_of_another_study_comes_best_first_with_all_its_epochs(spec: StudySpec) -> None:
    points = points_of_study(spec, SPACE, SAMPLINGS)
    assert list(points) == ["earlier, trial 1", "earlier, trial 0"]
    assert points["earlier, trial 1"]["sampling"] == "Shortwave"
    assert points["earlier, trial 1"]["rank"] == 16
    assert points["earlier, trial 0"]["sampling"] == "greedy"
    # After 2 epochs it is on the front; tried again, it passes them on its way to 24, or to 8.
    assert "epochs" not in points["earlier, trial 0"]
    drawn = points_of_study(spec, replace(SPACE, epochs=Range(low=4, high=24)), SAMPLINGS)
    assert drawn["earlier, trial 0"]["epochs"] == 8


def test_a_study_of_fewer_epochs_than_a_member_needs_refuses_it(spec: StudySpec) -> None:
    with pytest.raises(SettingError, match=r"trial 1\): epochs: 8 is not allowed"):
        points_of_study(spec, replace(SPACE, epochs=fixed(4)), SAMPLINGS)


def test_a_sampling_that_this_study_lacks_is_left_to_its_sampler(spec: StudySpec) -> None:
    points = points_of_study(spec, SPACE, SamplingSpace(presets=("greedy", "Yara")))
    assert "sampling" not in points["earlier, trial 1"]


def test_only_so_many_of_the_best_are_taken(spec: StudySpec) -> None:
    one = spec.model_copy(update={"start_from": StartFromSpec(study="earlier", best=1)})
    assert list(points_of_study(one, SPACE, SAMPLINGS)) == ["earlier, trial 1"]


def test_a_member_outside_the_space_is_refused_with_its_trial_and_setting(spec: StudySpec) -> None:
    narrow = replace(SPACE, rehearsal=fixed(0))
    with pytest.raises(SettingError) as error:
        points_of_study(spec, narrow, SAMPLINGS)
    assert str(error.value).startswith("start_from (earlier, trial 1): rehearsal: 2 is not")
    assert "widen this setting in [space]" in str(error.value)


def test_a_study_that_is_not_there_is_named_with_its_database(spec: StudySpec) -> None:
    wrong = spec.model_copy(update={"start_from": StartFromSpec(study="erlier")})
    with pytest.raises(ConfigurationError, match="there is no study 'erlier' at sqlite:///"):
        points_of_study(wrong, SPACE, SAMPLINGS)
