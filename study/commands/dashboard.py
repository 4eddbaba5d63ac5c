"""`remember dashboard`: shows a study in the browser, with its notes, figures and files."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import optuna
import typer
from rich.text import Text

from study.commands.application import (
    NameOption,
    OutOption,
    StorageOption,
    application,
    messages,
)
from study.commands.showing import opened_study


@application.command()
def dashboard(
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")
    ] = 8080,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Refuse everything that changes something.")
    ] = False,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser.")
    ] = False,
) -> None:
    """Show the studies of a database in optuna-dashboard, until Ctrl-C.

    Notes with example answers and figures of the study are kept up to date while it runs.
    """
    from study.dashboard.refreshing import refreshing
    from study.dashboard.server import is_loopback, listening, make_application

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with opened_study(storage, name, out) as (opened, place):
        web = make_application(opened, place, read_only=read_only)
        with listening(web, host, port) as server:
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{server.server_port}/dashboard"
            if not is_loopback(host) and not read_only:
                _say(
                    f"warning: the dashboard has no login: anyone who reaches {host} can change "
                    "and delete every study; add --read-only, or leave --host out",
                    style="yellow",
                )
            _say(f"study {place.name} at {url} (Ctrl-C ends it)")
            if open_browser:
                webbrowser.open(url)
            with refreshing(opened, place, say=lambda text: _say(text, style="yellow")):
                server.serve_forever()


def _say(text: str, style: str = "") -> None:
    messages.print(Text(text, style=style), soft_wrap=True)
