"""The study file: one TOML per study, every field checked, unknown keys refused."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from data.judge_config import DEFAULT_KEY_VARIABLE, JudgeKind
from data.nearest_name import hint_at
from data.recipes import SettingError
from data.scenarios import ProbesMode
from objectives.models.loading import GptqKernel, Loading
from search_spaces.presets import DEFAULT_PRESETS, name_presets
from search_spaces.recipe_space import RecipeSpace, SpaceName, named_space
from search_spaces.sampling_space import DEFAULT_MATRIX, MATRIX, SamplingSpace
from search_spaces.settings import Choices, Range, Setting, Value, bounds, fixed
from study.free_points import FreePointsMode
from study.goal import Goal
from study.optuna_pruning import OptunaPrunerName
from study.sampler import SamplerName

SCHEMA_VERSION = 1
STORAGE_VARIABLE = "OPTUNA_STORAGE"


class ConfigurationError(ValueError):
    """A study cannot be set up; the message names field, value, bound and remedy."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RangeSpec(_Part):
    """A range as the study file writes it: `{ low = 1e-4, high = 1e-2, log = true }`."""

    low: int | float
    high: int | float
    log: bool = False


def _kind(value: object) -> str:
    """Return how a setting is written, so that a mistake is explained as that kind alone."""
    if isinstance(value, dict | RangeSpec):
        return "range"
    return "list" if isinstance(value, list) else "value"


SettingSpec = Annotated[
    Annotated[RangeSpec, Tag("range")]
    | Annotated[list[Value], Tag("list")]
    | Annotated[Value, Tag("value")],
    Discriminator(_kind),
]


class ReferenceSpec(_Part):
    """The box a trial must reach into, relative to the measured base."""

    recall_margin: Annotated[float, Field(ge=0, lt=1)] = 0.05
    knowledge_loss: Annotated[float, Field(gt=0, le=1)] = 0.5


class PrunerSpec(_Part):
    """Successive halving: where the rungs are, and who goes on there.

    Rung k comes after `first_rung_tokens * spacing**k` trained tokens; trials that beat the
    reference are measured between rungs whenever their tokens have grown by `inside_spacing`.
    """

    enabled: bool = True
    first_rung_tokens: Annotated[int, Field(ge=1)] | None = None
    spacing: Annotated[float, Field(gt=1, le=10)] = 1.5
    inside_spacing: Annotated[float, Field(gt=1, le=10)] = 1.2
    reduction: Annotated[int, Field(ge=2, le=10)] = 3
    minimum_entries: Annotated[int, Field(ge=2)] = 8


class SingleObjectiveSpec(_Part):
    """One objective, recall - loss_weight * knowledge loss, and which pruner of Optuna decides."""

    loss_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    pruner: OptunaPrunerName = "median"


class BudgetSpec(_Part):
    """The most that a study may take, beside its trials; see `study.budget.Budget`."""

    epochs: Annotated[int, Field(ge=1)] | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    device_hours: Annotated[float, Field(gt=0)] | None = None


class StartFromSpec(_Part):
    """Another study whose best members are tried first; `storage` is this study's by default."""

    study: Annotated[str, Field(min_length=1)]
    storage: str | None = None
    best: Annotated[int, Field(ge=1, le=100)] = 5


class EndpointSpec(_Part):
    """A server that judges; see `data.judge_config.EndpointConfig`."""

    base_url: str
    model: str
    timeout_seconds: float = 30.0
    attempts: int = 4
    requests_per_minute: float | None = None
    concurrency: int = 4
    key_variable: str = DEFAULT_KEY_VARIABLE


class JudgeSpec(_Part):
    """Who decides whether answers are right; see `data.judge_config.JudgeConfig`."""

    kind: JudgeKind = "matcher"
    model: str | None = None
    endpoint: EndpointSpec | None = None


class TokensSpec(_Part):
    """What is said about the model's tokens; see `objectives.models.base.TokenRules`."""

    end: list[str] = []
    pad: str | None = None
    bad_words: list[str] = []


class LoadingSpec(_Part):
    """Which files a model is read from, and what is allowed; see `objectives.models.loading`."""

    revision: Annotated[str, Field(min_length=1)] | None = None
    weights_file: Annotated[str, Field(min_length=1)] | None = None
    gptq: GptqKernel = "built-in"
    trust_remote_code: bool = False
    pickled_weights: bool = False

    @property
    def options(self) -> Loading:
        """Return what is said, as loading reads it."""
        return Loading(**self.model_dump())


def _check_device(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?|split", value):
        raise ValueError(
            "it must be “auto”, “cpu”, “cuda”, “cuda:1” or another number, or “split”"
        )
    return value


def _check_memory(value: object) -> object:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?[KMGT]i?B", str(value))
    if match is None or float(match[1]) == 0:
        raise ValueError(
            "it must be a number above 0 and its unit, such as “24GB” (10^9 bytes) or “22.5 GiB” "
            "(2^30)"
        )
    return value


class EngineSpec(_Part):
    """What computes, and how: it changes speed and memory, and how coarsely numbers are rounded.

    `threads` are those of one worker on a CPU; several workers on one machine share its cores.
    The device `split` puts one model on all GPUs and, what does not fit there, in main memory.
    `memory_limit`, for example "24GB", is the most of a device that may be used.
    """

    device: Annotated[str, BeforeValidator(_check_device)] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    gradient_checkpointing: bool = False
    memory_limit: Annotated[str, BeforeValidator(_check_memory)] | None = None

    @property
    def memory_limit_bytes(self) -> int | None:
        """Return `memory_limit` in bytes, None without one: 1 GB is 10^9 and 1 GiB is 2^30."""
        if self.memory_limit is None:
            return None
        number = self.memory_limit.rstrip("KMGTiB ")
        unit = self.memory_limit.removeprefix(number).strip()
        thousand = 1024 if "i" in unit else 1000
        return int(float(number) * thousand ** ("KMGT".index(unit[0]) + 1))


class StudySpec(_Part):
    """Everything a study is made of. The resolved file is kept in the database."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[\w][\w .-]{0,99}$")] | None = None
    facts: str | None = None
    model: Annotated[str, Field(min_length=1)] = "pocket"
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    knowledge: Literal["auto", "pocket", "common"] = "auto"
    probes: str | None = None
    probes_mode: ProbesMode = "extend"
    rehearsal_facts: str | None = None
    trials: Annotated[int, Field(ge=1, le=100_000)] = 40
    slots: Annotated[int, Field(ge=1, le=1024)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    storage: str | None = None
    out: str = "runs"
    judge: JudgeSpec = JudgeSpec()
    sampler: SamplerName = "tpe"
    flat_trials: Annotated[int, Field(ge=1)] | None = None
    failures_in_a_row: Annotated[int, Field(ge=1)] = 5
    artifacts_gigabytes: Annotated[float, Field(ge=0)] = 2.0
    confirming_seeds: Annotated[int, Field(ge=0, le=100)] = 3
    max_knowledge_loss: Annotated[float, Field(gt=0, lt=1)] | None = None
    single_objective: SingleObjectiveSpec | None = None
    asked_samplings: Literal["own", "all"] = "own"
    rung_share: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    free_points: FreePointsMode = "none"
    sampling: Annotated[list[str], Field(min_length=1)] = list(DEFAULT_PRESETS)
    sampling_matrix: dict[str, SettingSpec] = {}
    start: list[dict[str, Value]] = []
    start_from: StartFromSpec | None = None
    named_space: SpaceName = "default"
    space: dict[str, SettingSpec] = {}
    reference: ReferenceSpec = ReferenceSpec()
    pruner: PrunerSpec = PrunerSpec()
    budget: BudgetSpec = BudgetSpec()
    tokens: TokensSpec = TokensSpec()
    loading: LoadingSpec = LoadingSpec()
    engine: EngineSpec = EngineSpec()

    @field_validator("judge", mode="before")
    @classmethod
    def _judge_by_its_kind(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("sampling")
    @classmethod
    def _presets_exist(cls, names: list[str]) -> list[str]:
        if names != [MATRIX]:
            if MATRIX in names:
                raise ValueError(f"{MATRIX!r} goes with no preset; write it alone")
            name_presets(names)
        return names

    @field_validator("sampling_matrix")
    @classmethod
    def _matrix_is_asked_for(
        cls, settings: dict[str, SettingSpec], info: ValidationInfo
    ) -> dict[str, SettingSpec]:
        if settings and info.data.get("sampling") != [MATRIX]:
            raise ValueError(f'it is read only with sampling = ["{MATRIX}"]')
        _matrix(settings)
        return settings

    @model_validator(mode="after")
    def _options_go_together(self) -> StudySpec:
        is_matrix = self.sampling == [MATRIX]
        if is_matrix and self.asked_samplings == "all":
            raise ValueError("asked_samplings: all goes with presets, not with the matrix")
        if is_matrix and self.free_points != "none":
            raise ValueError(
                f"free_points: {self.free_points} goes with presets, not with the matrix, whose "
                "points rungs are not"
            )
        if self.probes_mode == "replace" and self.probes is None:
            raise ValueError("probes_mode: replace goes with a file of probes; name it in probes")
        if self.single_objective is not None and self.free_points != "none":
            raise ValueError(
                f"free_points: {self.free_points} goes with two objectives; leave it out, or "
                "leave out single_objective"
            )
        return self

    @property
    def recorded(self) -> StudySpec:
        """Return what a database keeps of it: all but database URLs, which may hold passwords."""
        other = self.start_from
        return self.model_copy(
            update={
                "storage": None,
                "start_from": None
                if other is None
                else other.model_copy(update={"storage": None}),
            }
        )

    @property
    def goal(self) -> Goal:
        """Return what the study optimises."""
        single = self.single_objective
        return Goal(
            loss_weight=None if single is None else single.loss_weight,
            max_knowledge_loss=self.max_knowledge_loss,
        )

    @property
    def sampling_space(self) -> SamplingSpace:
        """Return what a trial's sampling may be."""
        if self.sampling == [MATRIX]:
            return _matrix(self.sampling_matrix)
        return SamplingSpace(presets=tuple(self.sampling))

    def recipe_space(
        self, *, hidden_size: int, context_tokens: int, longest_qna_tokens: int
    ) -> RecipeSpace:
        """Return the named space for a model with what this file narrows, fixes or lists.

        The arguments are those of `named_space`.

        Raises:
            ConfigurationError: If a setting does not exist.
            SettingError: If a value is out of its bounds or a range is empty.
        """
        space = named_space(
            self.named_space,
            hidden_size=hidden_size,
            context_tokens=context_tokens,
            longest_qna_tokens=longest_qna_tokens,
        )
        settings = {field.name: space.setting(field.name) for field in fields(RecipeSpace)}
        for name, spec in self.space.items():
            if name not in settings:
                raise ConfigurationError(_unknown(f"space.{name}", name, settings))
            settings[name] = _setting(spec)
        recipes = RecipeSpace(**settings)
        longest = max(int(length) for length in bounds(recipes.cutoff))
        if longest > context_tokens:
            raise SettingError(
                f"cutoff: {longest} is not allowed; it must be at most {context_tokens}, the "
                "tokens that the model can read"
            )
        return recipes


def _setting(spec: SettingSpec) -> Setting:
    if isinstance(spec, RangeSpec):
        return Range(low=spec.low, high=spec.high, log=spec.log)
    if isinstance(spec, list):
        return Choices(values=tuple(spec))
    return fixed(spec)


def _matrix(settings: Mapping[str, SettingSpec]) -> SamplingSpace:
    given = {name: _setting(spec) for name, spec in settings.items()}
    return SamplingSpace(presets=(), matrix={**DEFAULT_MATRIX, **given})


def load_spec(path: Path | None, flags: Mapping[str, Any]) -> StudySpec:
    """Return the study file with what the command line and the environment put in its place.

    A flag wins over the environment, the environment over the file, the file over the defaults.

    Args:
        path: The study file; None for the defaults.
        flags: Fields by name, those of a part as `part.field`; None means that the flag was not
            given.

    Raises:
        ConfigurationError: If the file cannot be read or a field is wrong.
    """
    values = {} if path is None else _read_toml(path)
    if os.environ.get(STORAGE_VARIABLE):
        values["storage"] = os.environ[STORAGE_VARIABLE]
    for name, value in flags.items():
        if value is not None:
            _put(values, name, value)
    try:
        return StudySpec.model_validate(values)
    except ValidationError as error:
        source = "" if path is None else f"{path}: "
        raise ConfigurationError(source + "; ".join(_explain(error))) from error


def _put(values: dict[str, Any], name: str, value: object) -> None:
    """Put a flag's value into its field, in place of the file's."""
    part, _, field = name.rpartition(".")
    if part:
        fields = values.setdefault(part, {})
        # What is no table is refused when all is checked.
        values[part] = {**fields, field: value} if isinstance(fields, dict) else fields
    else:
        values[field] = value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"study: there is no file {path}; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"study: {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"study: {path} is not valid TOML: {error}") from error


def _explain(error: ValidationError) -> Iterable[str]:
    """Return one message per wrong field, in the person's own words for it."""
    messages: dict[str, str] = {}
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        # Within a setting pydantic also names the kind it was read as, and each type it tried.
        names = [part for i, part in enumerate(place) if i < 2 or part not in _KINDS_AND_TYPES]
        field = ".".join(names)
        if problem["type"] == "extra_forbidden":
            message = _unknown(field, names[-1], _keys_of(place))
        else:
            explained = problem["msg"].removeprefix("Value error, ")
            # What concerns several fields names them itself.
            message = (
                f"{field}: {problem['input']!r} is not allowed: {explained}"
                if field
                else explained
            )
        messages.setdefault(field, message)
    return messages.values()


_KINDS_AND_TYPES = {"range", "list", "value", "str", "int", "float", "bool"}


def _keys_of(place: Sequence[str]) -> Iterable[str]:
    """Return the keys that exist where an unknown one was found."""
    if len(place) > 1 and place[0] == "space":
        return RangeSpec.model_fields
    kinds = StudySpec.model_fields[place[0]].annotation if len(place) > 1 else None
    for kind in (kinds, *get_args(kinds)):
        if isinstance(kind, type) and issubclass(kind, _Part):
            return kind.model_fields
    return StudySpec.model_fields


def _unknown(field: str, key: str, known: Iterable[str]) -> str:
    names = sorted(known)
    hint = hint_at(key, names, otherwise=f"the keys are {', '.join(names)}", cutoff=0.5)
    return f"{field}: there is no such key; {hint}"
