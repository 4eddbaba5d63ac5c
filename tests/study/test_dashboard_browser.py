"""`remember dashboard` as a person sees it: a process, a port, and a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from study.place import Place
from tests.study.dashboard_study import ADAPTER, build_study

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@contextmanager
def running_dashboard(place: Place) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start the command on any free port; yield the address it names and its process."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "study", "dashboard", "--port", "0"),
            *("--name", place.name, "--out", str(place.folder.parent)),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPTUNA_STORAGE": ""},
    )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        found = re.search(r"http://\S+", said)
        assert found, said + process.stderr.read()
        yield found[0], process
    finally:
        process.kill()
        process.communicate()


def wait_for_notes(url: str) -> None:
    """Wait until the command's thread has written its contents for the first time."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{url.removesuffix('/dashboard')}/api/studies/1") as reply:
            if b"How to go on" in reply.read():
                return
        time.sleep(0.1)
    raise AssertionError("no note was written")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is on the path")
def test_the_study_its_front_a_trial_with_its_note_and_its_files(tmp_path: Path) -> None:
    place = build_study(tmp_path / "runs")
    with (
        running_dashboard(place) as (url, process),
        playwright.sync_playwright() as browsers,
    ):
        wait_for_notes(url)
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        errors: list[str] = []
        asked: list[str] = []
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))

        # The list of studies leads to ours.
        page.goto(url)
        page.get_by_text("shown").first.click()
        page.wait_for_url("**/studies/1**")

        # The analysis page draws the Pareto plot, and our figures below it.
        page.goto(f"{url}/studies/1")
        page.wait_for_selector("#graph-pareto-front .main-svg")
        front = page.locator("[id='user-defined-plot:remember-front']")
        front.locator(".main-svg").first.wait_for()
        assert front.locator(".scatterlayer .trace").count() >= 3
        assert "Recall of the new facts" in front.inner_text()
        assert page.locator("[id^='user-defined-plot:remember-'] .main-svg").count() >= 7
        page.screenshot(path=tmp_path / "study.png", full_page=True)

        # The study's note.
        page.goto(f"{url}/studies/1/note")
        page.get_by_text("How to go on").wait_for()
        page.screenshot(path=tmp_path / "note.png")

        # A trial with its note: the rude answer is there to read, and did nothing.
        page.goto(f"{url}/studies/1/trials?numbers=0")
        page.get_by_text("Ada Quill").first.wait_for()
        shown = " ".join(page.inner_text("body").split())
        for part in (
            "after 4 epochs: recall 90 % (85–95 %), knowledge loss 10 % (5–15 %)",
            "[wrong] Tom ``` # heading ~~~ <img src=x onerror=\"document.title='taken'\">",
            "**bold** [link](http://rude.example/a) ![image](http://rude.example/i.png) `code` |",
        ):
            assert part in shown
        assert page.title() != "taken"
        assert page.locator("a[href*='rude'], img[src*='rude'], img[src='x']").count() == 0
        assert page.locator("h1:has-text('heading'), strong:has-text('bold')").count() == 0

        # Its files are listed, and come as they were kept.
        name = "adapter-trial-0000-epoch-0004.zip"
        page.get_by_text(name).first.wait_for()
        with page.expect_download() as download:
            page.locator(f"a[download='{name}']").click()
        assert download.value.suggested_filename == name
        assert Path(download.value.path()).read_bytes() == ADAPTER
        page.screenshot(path=tmp_path / "trial.png", full_page=True)

        browser.close()
        assert errors == []
        assert [
            address for address in asked if not address.startswith(("http://127", "blob"))
        ] == []

        # Ctrl-C ends it.
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "interrupted\n"
