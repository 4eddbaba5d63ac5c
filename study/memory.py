"""What a study needs of memory, and how many adapters its limit allows at once."""

from __future__ import annotations

from functools import cached_property

from data.recipes import GREEDY
from data.scenarios import Scenario
from objectives.demand import demand_of
from objectives.models.base import BaseModel, ModelError
from objectives.models.machine.footprint import (
    Demand,
    Footprint,
    ModelShape,
    Storing,
    estimate,
    shape_of_model,
    storing_of,
)
from objectives.models.machine.memory_limit import (
    require_room,
    room_on,
    say_gigabytes,
    too_little_memory,
)
from objectives.models.machine.placement import SPLIT, devices_of
from search_spaces.presets import find_preset
from search_spaces.recipe_space import RecipeSpace, largest_recipe
from search_spaces.sampling_space import SamplingSpace
from search_spaces.settings import bounds
from study.spec import EngineSpec


class StudyMemory:
    """What a study needs of a loaded model's devices, worked out when it is asked for."""

    def __init__(
        self,
        base: BaseModel,
        scenario: Scenario,
        space: RecipeSpace,
        samplings: SamplingSpace,
        engine: EngineSpec,
        *,
        workers: int = 1,
    ) -> None:
        """Look at nothing yet.

        Args:
            base: The model.
            scenario: What is taught and asked.
            space: What may be trained.
            samplings: What may be asked.
            engine: Where, and within which limit.
            workers: How many do the same; on a CPU they share its memory.
        """
        self._base = base
        self._scenario = scenario
        self._space = space
        self._samplings = samplings
        self._engine = engine
        self._workers = workers

    @cached_property
    def shape(self) -> ModelShape:
        """Return the model's sizes."""
        return shape_of_model(self._base.model)

    @cached_property
    def storing(self) -> Storing:
        """Return how the model is held."""
        return storing_of(self._base.model)

    @cached_property
    def demand(self) -> Demand:
        """Return what the study demands at most."""
        return demand_of(
            self._scenario,
            largest_recipe(self._space),
            lambda text: len(self._base.encode_prompt(text)),
            answer_tokens=longest_answer(self._samplings),
            gradient_checkpointing=self._engine.gradient_checkpointing,
            chat=self._base.chat,
        )

    @property
    def footprint(self) -> Footprint:
        """Return what that takes."""
        return estimate(self.shape, self.storing, self.demand)

    @property
    def room_bytes(self) -> int | None:
        """Return what there is for a worker on the smallest of its devices.

        None on a CPU without a limit.
        """
        limit = self._engine.memory_limit_bytes
        if limit is not None and self._on_cpu:
            limit //= self._workers
        return room_on(devices_of(self._base.model), limit)

    @property
    def _on_cpu(self) -> bool:
        return self._base.device.type == "cpu"

    def most_slots(self, most: int, *, asked: int | None) -> int:
        """Return the most slots to try, up to `most`: on a CPU what the limit has room for.

        There a limit cannot be enforced, so that the estimate decides. On a GPU the memory itself
        tells how many fit.

        Args:
            most: The most that make sense.
            asked: As many as the person wants; None for as many as pay.

        Raises:
            ModelError: If there is no room for one slot, or for as many as are asked for.
        """
        room = self.room_bytes
        if room is None or not self._on_cpu:
            return most
        fitting = require_room(
            self.shape, self.storing, self.demand, limit_bytes=room
        ).slots_within(room)
        if asked is not None and asked > fitting:
            raise ModelError(
                f"slots: {asked} is not allowed; within a memory_limit of {say_gigabytes(room)} "
                f"it must be at most {fitting}"
            )
        return min(most, fitting)

    def explain_too_little(self) -> ModelError:
        """Return the error that not even one adapter could be trained, with what would fit."""
        room, least = self.room_bytes, self.footprint.least
        # A split model has more than one device's room, and may have main memory's.
        if room is not None and room < least and self._engine.device != SPLIT:
            return too_little_memory(
                self.shape,
                self.storing,
                self.demand,
                limit_bytes=room,
                is_set=self._engine.memory_limit_bytes is not None,
            )
        saving = "" if self._engine.gradient_checkpointing else "gradient_checkpointing = true, "
        return ModelError(
            f"memory: it ran out while a single adapter of {self._base.name} was trained, which "
            f"takes about {say_gigabytes(least)} with the model; end what else uses the device, "
            f"or set {saving}a smaller batch_size, cutoff or rank, or name a smaller model"
        )


def longest_answer(samplings: SamplingSpace) -> int:
    """Return the most tokens of any answer of a study."""
    lengths = [GREEDY.max_new_tokens]
    lengths += [find_preset(name).max_new_tokens for name in samplings.presets]
    if "max_new_tokens" in samplings.matrix:
        lengths += map(int, bounds(samplings.matrix["max_new_tokens"]))
    return max(lengths)
