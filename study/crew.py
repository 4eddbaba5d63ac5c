"""Several workers of one study on this machine: starts a process for each, and sees to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from objectives.models.machine.devices import available_cores, list_devices
from study.engine import Post
from study.spec import ConfigurationError, EngineSpec, StudySpec

PARENT_VARIABLE = "REMEMBER_PARENT"  # the process that a worker does not outlive
_LOOK_SECONDS = 0.2
_READY_SECONDS = 1.0  # between two looks whether the study was begun


def posts_on(spec: StudySpec, *, workers: int | None, devices: str | None) -> list[EngineSpec]:
    """Return where each worker computes: one per device, or several that share the processor.

    Args:
        spec: The study, whose engine says the rest.
        workers: How many; with GPUs so many of the first.
        devices: Names parted by commas, or “all”: every GPU, or the processor where there is none.

    Raises:
        ConfigurationError: If there are not so many devices, or a name is not one.
    """
    there = [device.name for device in list_devices()]
    gpus = [name for name in there if name != "cpu"]
    if devices is None:
        device, number = spec.engine.device, workers or 1
        if device in ("auto", "cuda") and gpus:
            possible = gpus
        elif device in ("auto", "cpu"):
            possible = ["cpu"] * number
        else:
            possible = [device]
        if number > len(possible):
            raise ConfigurationError(
                f"workers: {number} need a device each, and there are {len(possible)}: "
                f"{', '.join(possible)}; start fewer"
            )
        names = possible[:number]
    elif devices == "all":
        names = gpus or ["cpu"]
    else:
        names = [name.strip() for name in devices.split(",") if name.strip()]
        unknown = [name for name in names if name not in there]
        if unknown or not names:
            raise ConfigurationError(
                f"devices: {', '.join(unknown) or repr(devices)} is not there; torch can use "
                f"{', '.join(there)}, or write all"
            )
    if workers is not None and workers != len(names):
        raise ConfigurationError(
            f"workers: {workers} does not go with {len(names)} devices; leave one of the two out"
        )
    on_cpu = names.count("cpu")
    shared = max(1, available_cores() // on_cpu) if on_cpu else None
    return [
        spec.engine.model_copy(
            update={
                "device": name,
                "threads": spec.engine.threads or (shared if name == "cpu" else None),
            }
        )
        for name in names
    ]


@dataclass(slots=True)
class _Member:
    """A worker's process, and what it said last."""

    label: str
    process: subprocess.Popen[str]
    reader: threading.Thread
    last_words: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Crew:
    """The workers of one study on this machine.

    The first prepares the study, the others join once it is there. Each runs in a session of its
    own, so that a Ctrl-C reaches them through this process alone, and ends with it.
    """

    spec: StudySpec
    posts: Sequence[EngineSpec]
    is_prepared: Callable[[], bool]
    say: Callable[[str], None]
    _members: list[_Member] = field(default_factory=list)

    def run(self, should_stop: Callable[[], bool], look: Callable[[], None]) -> int:
        """Run all workers to their end, and return the exit code of the study.

        That is 0 where one worker came to the end of the study, whatever became of the others;
        else the first worker's that failed. A stop is passed on once; every worker then saves its
        trials.

        Args:
            should_stop: Asked all the time.
            look: Called several times a second.
        """
        try:
            self._start(0)
            was_stopped, waiting = False, list(range(1, len(self.posts)))
            looked_at = time.monotonic()
            while any(member.process.poll() is None for member in self._members):
                if waiting and not was_stopped and time.monotonic() - looked_at > _READY_SECONDS:
                    looked_at = time.monotonic()
                    if self.is_prepared():
                        for number in waiting:
                            self._start(number)
                        waiting = []
                if should_stop() and not was_stopped:
                    was_stopped = True
                    for member in self._members:
                        member.process.terminate()
                look()
                time.sleep(_LOOK_SECONDS)
        finally:
            self._kill()
        return self._exit_code()

    def _start(self, number: int) -> None:
        post = self.posts[number]
        process = subprocess.Popen(
            [sys.executable, "-m", "study", "worker", "--from-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env=_environment(post),
        )
        label = f"worker {number + 1}" + ("" if post.device == "cpu" else f" ({post.device})")
        member = _Member(label, process, threading.Thread())
        member.reader = threading.Thread(target=self._read, args=(member,), daemon=True)
        self._members.append(member)
        member.reader.start()
        assert process.stdin is not None
        try:
            process.stdin.write(describe_post(self.spec, post, workers=len(self.posts)))
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already; its own words say why

    def _read(self, member: _Member) -> None:
        stream: IO[str] | None = member.process.stderr
        assert stream is not None
        for line in stream:
            if words := line.rstrip():
                member.last_words = [*member.last_words[-20:], words]
                self.say(f"{member.label}: {words}")
        code = member.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            self.say(f"{member.label}: ended by {name}; others take its trials up")

    def _kill(self) -> None:
        for member in self._members:
            if member.process.poll() is None:
                member.process.kill()
        for member in self._members:
            member.process.wait()
            member.reader.join(timeout=5)

    def _exit_code(self) -> int:
        codes = [member.process.returncode for member in self._members]
        return 0 if 0 in codes else next((abs(code) for code in codes if code), 0)


def describe_post(spec: StudySpec, engine: EngineSpec, *, workers: int) -> str:
    """Return what a worker's process reads on its standard input: the study and its post."""
    return "\n".join((spec.model_dump_json(), engine.model_dump_json(), str(workers)))


def read_post(text: str) -> tuple[StudySpec, Post]:
    """Return what `describe_post` wrote."""
    spec, engine, workers = text.split("\n")
    return (
        StudySpec.model_validate_json(spec),
        Post(engine=EngineSpec.model_validate_json(engine), workers=int(workers)),
    )


def parent_is_gone() -> bool:
    """Return whether the process that started this one as a worker has ended."""
    parent = os.environ.get(PARENT_VARIABLE)
    return parent is not None and os.getppid() != int(parent)


def _environment(post: EngineSpec) -> dict[str, str]:
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    # The folder of the packages may be known to this process alone.
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    if post.threads is not None:
        environment["OMP_NUM_THREADS"] = str(post.threads)
    return environment
