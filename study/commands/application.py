"""The application: all subcommands, what the flags have in common, errors and exit codes."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from analysis.wording import show_text
from data.facts import FactsError
from data.recipes import SettingError
from storage.database import StorageError
from study.setting_up import NothingToLearn
from study.spec import ConfigurationError

DONE, FAILED, USAGE, NOTHING_USABLE = 0, 1, 2, 3

application = typer.Typer(
    name="remember",
    help=(
        "Measures what LoRA can teach a language model, what it forgets, and which settings do it "
        "best."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

messages = Console(stderr=True)
results = Console()

StorageOption = Annotated[
    str | None,
    typer.Option(
        help="Database URL; default: $OPTUNA_STORAGE, else remember.db in the output folder."
    ),
]
NameOption = Annotated[
    str | None, typer.Option(help="Name of the study; default: made from facts and model.")
]
OutOption = Annotated[Path | None, typer.Option(help="Folder for results; default: runs.")]
RevisionOption = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of a model on the hub; default: its main branch."),
]
ProbesOption = Annotated[
    Path | None,
    typer.Option(
        help="Your own probes, a file with question and answer; default: those shipped alone."
    ),
]
RehearsalOption = Annotated[
    Path | None,
    typer.Option(
        help="Your own known facts to rehearse, such a file; default: those shipped alone."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


class Interrupted(BaseException):
    """A signal ended the command; `code` is its exit code.

    No `Exception`, so that nothing that outlives failures takes it for one.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class CrewFailed(Exception):
    """No worker came to the end of the study; each has said why. `code` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class NothingUsable(Exception):
    """The command ended as it should, and nothing came of it that can be used."""


@application.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Explain the flag that every command takes; `run_application` acts on it."""


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(128 + number)


def run_application(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; every error is printed as one message."""
    # The subcommands register themselves when they are imported, and are not used by name.
    import study.commands.asking
    import study.commands.dashboard
    import study.commands.deleting
    import study.commands.doctor
    import study.commands.exporting
    import study.commands.judging
    import study.commands.models
    import study.commands.pocket
    import study.commands.quantising
    import study.commands.running
    import study.commands.showing
    import study.commands.worker  # noqa: F401
    from objectives.judges.base import JudgeError, JudgeUnreachable
    from objectives.models.base import ModelError
    from storage.patience import DatabaseLost
    from study.assigning import TooManyFailures
    from study.worker import DiskProblem

    debug = "--debug" in arguments
    signal.signal(signal.SIGINT, _interrupt)
    try:
        application([argument for argument in arguments if argument != "--debug"])
    except SystemExit as ending:  # how typer ends, also after a usage error that it has explained
        return ending.code if isinstance(ending.code, int) else FAILED
    except Interrupted as interruption:
        messages.print("interrupted")
        return interruption.code
    except CrewFailed as ending:
        messages.print(Text("no worker came to the end of the study; see above", style="red"))
        return ending.code
    except (JudgeUnreachable, DatabaseLost, TooManyFailures, DiskProblem) as waiting:
        messages.print(Text(_shown(waiting)), soft_wrap=True)
        return FAILED
    except (NothingToLearn, NothingUsable) as ending:
        messages.print(Text(_shown(ending)))
        return NOTHING_USABLE
    except (
        ConfigurationError,
        FactsError,
        SettingError,
        StorageError,
        ModelError,
        JudgeError,
    ) as error:
        if debug:
            traceback.print_exc()
        messages.print(Text.assemble(("error: ", "bold red"), _shown(error)), soft_wrap=True)
        return USAGE
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            messages.print(
                Text.assemble(
                    ("failed: ", "bold red"),
                    f"{type(error).__name__}: {_shown(error)}",
                    "\nRun again with --debug to see where.",
                ),
                soft_wrap=True,
            )
        return FAILED
    return DONE


def _shown(error: Exception) -> str:
    """Return what an error says, line by line: it may quote a file that somebody else wrote."""
    return "\n".join(map(show_text, str(error).splitlines()))
