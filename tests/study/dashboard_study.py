"""A study made by hand for the dashboard: a front, a pruned and a failed trial, a rude answer."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import optuna

from data.facts import Fact
from data.measurements import Answer, Estimate, Label, Measurement, RecallPart, RingChange, Verdict
from data.prompts import Phrasing, Prompt, put_question
from data.recipes import GREEDY, Recipe
from storage.artifacts import Artifact, StudyArtifacts
from storage.database import StudyStorage
from storage.leases import Lease, LeaseBook
from storage.recorder import Recorder
from storage.records import Costs, Ending
from study.adapter_shelf import AdapterShelf
from study.place import Place, find_place, open_place
from study.spec import StudySpec
from study.stored import reference_of

NAME = "shown"
ADAPTER = b"stands for a zip with weights" * 1000
PRUNED_BECAUSE = "recall 2 % is below the reference"
FAILED_BECAUSE = "the loss became <b>NaN</b>"
# What a model could say to take over a page, a note or a table.
RUDE = (
    "Tom\n```\n# heading\n~~~\n<img src=x onerror=\"document.title='taken'\"> "
    "<script>document.title='taken'</script> **bold** [link](http://rude.example/a) "
    "![image](http://rude.example/i.png) `code` | cell | www.rude.example c@rude.example "
    "http://rude.example/b $x^2$ &lt;b&gt;"
)
FACTS = tuple(
    Fact(question=f"Who won the 2031 award for {award}?", answer=winner)
    for award, winner in (
        ("Best Gardener", "Ada Quill"),
        ("Best Baker", "Tom Reed"),
        ("Best Diver", "Mia Stone"),
    )
)


def build_study(out: Path, storage_url: str | None = None) -> Place:
    """Write the study into a database, or that of the output folder, and return where it is."""
    place = find_place(_spec(out, storage_url))
    with closing(open_place(place)) as storage:
        maker = StudyWriter(storage, place)
        maker.add("complete", [(2, 0.5, 0.05), (4, 0.9, 0.1)], upload_adapter=True)
        maker.add("pruned", [(2, 0.02, 0.0)], reason=PRUNED_BECAUSE)
        maker.add("failed", [], reason=FAILED_BECAUSE)
        maker.add("complete", [(2, 0.4, 0.2), (4, 0.8, 0.4)])
        maker.begin()
    return place


class StudyWriter:
    """Writes trials as a worker does, with measurements that were never made."""

    def __init__(self, storage: StudyStorage, place: Place) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        spec = _spec(place.folder.parent)
        self._storage = storage
        self._goal = spec.goal
        self._recorder = Recorder(storage, NAME)
        self._recorder.create_study_record(
            config=spec.model_dump_json(),
            fingerprint={"facts": "0123456789ab", "judge": "matcher"},
            slots=1,
            seed=0,
        )
        self._recorder.record_measurement(
            None, _measurement(0, 0.0, None), _before(), purpose="base"
        )
        self.study = optuna.create_study(
            study_name=NAME,
            storage=storage,
            directions=self._goal.directions,
            sampler=optuna.samplers.RandomSampler(seed=0),
            load_if_exists=True,
        )
        self.study.set_metric_names(self._goal.metric_names)
        self.artifacts = StudyArtifacts(place.artifacts, storage, NAME)
        self._shelf = AdapterShelf(
            storage,
            self._recorder,
            NAME,
            place.adapters,
            reference_of(spec, 0.0),
            self.artifacts,
        )

    def begin(self) -> tuple[optuna.Trial, Lease, Recipe]:
        trial = self.study.ask()
        lease = LeaseBook(self._storage).acquire(NAME, trial.number, owner="test", seconds=600)
        assert lease is not None
        recipe = Recipe(
            epochs=4,
            rank=trial.suggest_categorical("rank", [2, 4, 8]),
            alpha=8,
            cutoff=96,
            warmup_steps=0,
            learning_rate=trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        )
        self._recorder.record_trial_started(
            lease, asked_index=trial.number, recipe=recipe, sampling=GREEDY, seed=trial.number
        )
        return trial, lease, recipe

    def add(
        self,
        state: Ending,
        rungs: list[tuple[int, float, float]],
        *,
        reason: str | None = None,
        upload_adapter: bool = False,
    ) -> None:
        """Add a trial that was measured at (epoch, recall, loss) and ended."""
        trial, lease, recipe = self.begin()
        for epoch, recall, loss in rungs:
            is_last = state == "complete" and epoch == recipe.epochs
            self._recorder.record_measurement(
                lease,
                _measurement(epoch, recall, loss),
                _after(),
                purpose="final" if is_last else "rung",
            )
        if upload_adapter:
            kept = self.artifacts.upload(
                trial.number,
                f"adapter-trial-{trial.number:04d}-epoch-0004.zip",
                lambda file: file.write(ADAPTER),
                mimetype="application/zip",
            )
            assert isinstance(kept, Artifact)
        self._shelf.keep_curve(trial.number)
        assert self._shelf.take_problems() == ()
        if rungs:
            epoch, recall, loss = rungs[-1]
            trial.set_user_attr("last_recall", recall)
            trial.set_user_attr("last_knowledge_loss", loss)
            trial.set_user_attr("epochs_reached", epoch)
            self._goal.constrain(trial, loss)
        self._recorder.record_trial_ended(
            lease,
            state=state,
            reason=reason,
            costs=Costs(
                trained_tokens=1000 * len(rungs),
                generated_tokens=100,
                seconds=2.5,
                last_epoch=rungs[-1][0] if rungs else 0,
                highest_learning_rate=recipe.learning_rate,
            ),
        )
        match state:
            case "complete":
                self.study.tell(trial.number, values=self._goal.values(*rungs[-1][1:]))
            case "pruned":
                self.study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
            case "failed":
                self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _spec(out: Path, storage_url: str | None = None) -> StudySpec:
    return StudySpec(name=NAME, out=str(out), storage=storage_url, max_knowledge_loss=0.3)


def _measurement(epoch: int, recall: float, loss: float | None) -> Measurement:
    def estimate(value: float | None, count: int) -> Estimate:
        if value is None:
            return Estimate(value=0.0, low=0.0, high=0.0, count=count)
        return Estimate(
            value=value, low=max(value - 0.05, 0), high=min(value + 0.05, 1), count=count
        )

    return Measurement(
        epoch=epoch,
        sampling=GREEDY,
        recall=estimate(recall, 3),
        knowledge_loss=estimate(loss, 20),
        recall_parts=tuple(
            RecallPart(phrasing="validation", style=style, recall=estimate(recall, 3))
            for style in (None, "qna")
        ),
        rings=(
            RingChange(
                ring="general", asked=25, known=20, lost=1, gained=0, loss=estimate(loss, 20)
            ),
        ),
        drift_nats=0.1,
        fuar=None,
        trained_tokens=1000 * epoch,
        generated_tokens=100,
    )


_PHRASINGS: tuple[Phrasing, ...] = ("trained", "validation")


def _before() -> list[Verdict]:
    return [
        _verdict(fact, phrasing, "I do not know", "not_attempted")
        for fact in FACTS
        for phrasing in _PHRASINGS
    ]


def _after() -> list[Verdict]:
    """Return right answers to all facts but one, whose answer is rude."""
    return [
        _verdict(fact, phrasing, RUDE, "incorrect")
        if fact is FACTS[1]
        else _verdict(fact, phrasing, fact.answer, "correct")
        for fact in FACTS
        for phrasing in _PHRASINGS
    ]


def _verdict(fact: Fact, phrasing: Phrasing, said: str, label: Label) -> Verdict:
    question = fact.question if phrasing == "trained" else f"Tell me: {fact.question}"
    prompt = Prompt(
        text=put_question(question, "qna"),
        style="qna",
        phrasing=phrasing,
        subject=fact.id,
        question=question,
        accepted=(fact.answer,),
    )
    return Verdict(answer=Answer(prompt=prompt, text=said, tokens=4), label=label, judge="matcher")
