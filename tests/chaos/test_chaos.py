"""Workers are killed, databases stopped: every trial ends once, as if nothing had happened."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.chaos_study import (
    Outcome,
    check_books,
    outcomes,
    read,
    read_if_there,
    run,
    said,
    same_adapters,
    start,
    storage_url,
    write_study,
)
from tests.storage.postgresql_server import (
    fresh_database,
    own_postgresql,
    running_postgresql,
)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

TRIALS = 40
KILLS = 50
WORKERS = 3


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the study that one worker ran without a break."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_study(folder, trials=TRIALS)
    run(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Return the URL of a PostgreSQL server of our own."""
    with running_postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Return a database; None is the one in the study's folder."""
    if request.param == "sqlite":
        return None
    server: str = request.getfixturevalue("server")
    return fresh_database(server)


def compare(folder: Path, url: str | None, undisturbed: Path) -> None:
    database = url or storage_url(folder)
    check_books(database, trials=TRIALS)
    found, expected = outcomes(read(database)), outcomes(read(storage_url(undisturbed)))
    states = {outcome.state for outcome in expected.values()}
    assert states == {"complete", "pruned"}  # else less is tested than is meant
    differing = [index for index in expected if found[index] != expected[index]]
    assert not differing, [_difference(expected[i], found[i]) for i in differing[:3]]
    assert same_adapters(folder, undisturbed) > 0


def _difference(expected: Outcome, found: Outcome) -> str:
    return f"expected {expected}\nfound {found}"


def test_fifty_killed_workers_change_nothing(
    tmp_path: Path, url: str | None, undisturbed: Path
) -> None:
    chance = random.Random(7)
    write_study(tmp_path, trials=TRIALS)
    workers = [start(tmp_path, url=url) for _ in range(WORKERS)]
    kills = in_the_middle = 0
    deadline = time.monotonic() + 2400
    try:
        while time.monotonic() < deadline:
            time.sleep(chance.uniform(1, 8))
            if all(worker.poll() in (0, 3) for worker in workers):
                break
            for place, worker in enumerate(workers):
                assert worker.poll() in (None, 0, 3, -signal.SIGKILL), said(tmp_path)
                if worker.poll() == -signal.SIGKILL:
                    workers[place] = start(tmp_path, url=url)
            alive = [worker for worker in workers if worker.poll() is None]
            if kills < KILLS and alive:
                record = read_if_there(url or storage_url(tmp_path))
                running = record is not None and record.ended_trials < len(record.trials)
                in_the_middle += running
                victim = chance.choice(alive)
                victim.kill()
                victim.wait()
                kills += 1
    finally:
        for worker in workers:
            worker.kill()
    print(f"{kills} workers killed, {in_the_middle} times while trials ran")
    assert kills == KILLS
    assert in_the_middle > KILLS / 4
    compare(tmp_path, url, undisturbed)


def test_a_study_of_three_killed_workers_is_finished_by_one_with_two_devices(
    tmp_path: Path, undisturbed: Path
) -> None:
    write_study(tmp_path, trials=TRIALS)
    workers = [start(tmp_path) for _ in range(WORKERS)]
    _wait_for_ended_trials(tmp_path, storage_url(tmp_path), 12)
    for worker in workers:
        worker.kill()
        worker.wait()
    before = read(storage_url(tmp_path))
    ended = [trial for trial in before.trials if trial.state != "running"]
    assert any(trial.state == "running" for trial in before.trials)
    run(tmp_path, "--workers", "2")
    after = read(storage_url(tmp_path))
    assert [after.trials[trial.number].costs for trial in ended] == [t.costs for t in ended]
    compare(tmp_path, None, undisturbed)


def _wait_for_ended_trials(folder: Path, url: str, number: int) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(1)
        record = read_if_there(url)
        if record is not None and record.ended_trials >= number:
            return
    raise AssertionError(said(folder))


def test_a_database_that_is_away_for_half_a_minute_is_waited_for(
    tmp_path: Path, undisturbed: Path
) -> None:
    write_study(tmp_path, trials=TRIALS)
    with own_postgresql() as server:
        workers = [start(tmp_path, url=server.url) for _ in range(2)]
        _wait_for_ended_trials(tmp_path, server.url, 10)
        server.stop()
        time.sleep(30)
        assert all(worker.poll() is None for worker in workers), said(tmp_path)
        server.start()
        codes = [worker.wait(timeout=1200) for worker in workers]
        assert set(codes) <= {0, 3}, said(tmp_path)
        log = (tmp_path / "log.txt").read_text(encoding="utf-8")
        assert log.count("the database cannot be used") >= 2
        assert log.count("the database is back") >= 2
        compare(tmp_path, server.url, undisturbed)
