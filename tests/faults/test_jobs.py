"""Slots are killed at each point of a job, while clients change its records: none is lost, doubled or resurrected."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from beds.client.client import Client
from beds.client.jobs import JobTicket
from beds.config import Settings
from beds.domain.reply import Record
from beds.errors import BedsError, NotFound
from beds.stack.stack import Stack
from tests.conftest import ADMIN_QUEUES, ALL_QUEUES, JOB_QUEUES, OwnVhost, running_worker, wait_for, wait_until_served
from tests.killing_jobs import POINTS
from tests.records_of_jobs import Places

RECORDS = 600
SECONDS = 120.0


class Changes:
    """A client that updates and deletes records of the source while a job moves them, and keeps what must be there."""

    def __init__(self, settings: Settings, model: dict[int, Record], template: str) -> None:
        self.model = model
        self._template = template
        self._client = Client(settings)
        self._ended = threading.Event()
        self.problems: list[BedsError] = []
        self.done = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)
        self._client.close()

    def _run(self) -> None:
        chance = random.Random(7)
        ids = sorted(self.model)
        chance.shuffle(ids)
        for number, key in enumerate(ids):
            if self._ended.is_set():
                return
            try:
                if number % 3 == 0:
                    self._client.write("delete_record", self._template, key, timeout=60)
                    del self.model[key]
                else:
                    self._client.write("update_record", self._template, {"id": key, "amount": -number}, timeout=60)
                    self.model[key]["amount"] = -number
                self.done += 1
            except NotFound:
                pass  # it was moved before
            except BedsError as error:
                error.detail["id"] = key
                self.problems.append(error)
            time.sleep(0.002)


@pytest.fixture
def places(database: Any, settings: Settings, workers: None) -> Iterator[Places]:
    with Places.opened(settings, database) as found:
        found.clear()
        yield found


@pytest.fixture
def starter(settings: Settings, workers: None) -> Iterator[Client]:
    with Client(settings, operator=True) as found:
        yield found


@contextmanager
def _killed_at(project: Path, point: str, tmp_path: Path) -> Iterator[Path]:
    flag = tmp_path / "killed"
    env = {"KILL_AT": point, "KILL_FLAG": str(flag), "BEDS_BROKERS__JOB_WAREHOUSE__TIME_LIMIT": "5",
           "BEDS_BROKERS__JOB_MIGRATE__TIME_LIMIT": "5", "BEDS_COLD__ARCHIVE__URL": str(tmp_path / "cold")}  # fmt: skip
    with running_worker(project, JOB_QUEUES, "-I", "tests.killing_jobs", env=env):
        yield flag


def _ended(ticket: JobTicket) -> dict[str, Any]:
    def look() -> Any:
        report = ticket.report()
        assert report["state"] not in ("FAILED", "STALLED"), report
        return report["state"] == "DONE" and report

    return wait_for(look, SECONDS, f"the end of {ticket!r}")  # type: ignore[no-any-return]


def _counted(report: dict[str, Any]) -> None:
    """Each record that was read is accounted for once."""
    assert report["rejected"] == report["in_doubt"] == 0, report


FILES = ("file written", "file listed")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("point", [point for point in POINTS if point not in FILES])
def test_a_kill_between_two_stores_loses_and_doubles_nothing(
    project: Path, settings: Settings, places: Places, starter: Client, tmp_path: Path, point: str
) -> None:
    model = places.fill("JobDocs", RECORDS)
    with _killed_at(project, point, tmp_path) as flag, Changes(settings, model, "JobDocs") as changes:
        report = _ended(starter.submit_job("docs_to_rows"))
        assert flag.exists(), "no slot was killed"
    assert not changes.problems
    _counted(report)
    hot, cool = places.records("JobDocs"), places.records("JobRows")
    assert not hot.keys() & cool.keys(), "records in two places"
    assert {**hot, **cool} == model


@pytest.mark.timeout(240)
@pytest.mark.parametrize("point", ["cut", *FILES, "removed", "folded", "published", "lane ended", "ticket ended"])
def test_a_kill_on_the_way_to_files_loses_and_doubles_nothing(
    project: Path, settings: Settings, places: Places, starter: Client, tmp_path: Path, point: str
) -> None:
    model = places.fill("JobDocs", RECORDS)
    with _killed_at(project, point, tmp_path) as flag, Changes(settings, model, "JobDocs") as changes:
        report = _ended(starter.submit_job("docs_cold"))
        assert flag.exists(), "no slot was killed"
    assert not changes.problems
    _counted(report)
    hot, cold = places.records("JobDocs"), places.in_files(tmp_path / "cold" / "docs_cold")
    assert not hot.keys() & cold.keys(), "records in two places"
    assert {**hot, **cold} == model


@pytest.mark.timeout(240)
def test_a_poisoned_chunk_stalls_its_job_and_resume_goes_on(
    project: Path, settings: Settings, places: Places, starter: Client, tmp_path: Path
) -> None:
    model = places.fill("JobDocs", 200)
    poison = tmp_path / "poison"
    poison.touch()
    env = {"KILL_AT": "read back", "KILL_FLAG": str(tmp_path / "flag"), "KILL_ALWAYS": str(poison)}
    with running_worker(project, JOB_QUEUES, "-I", "tests.killing_jobs", env=env):
        ticket = starter.submit_job("docs_cool")
        stalled = wait_for(lambda: (r := ticket.report())["state"] == "STALLED" and r, SECONDS, "the stall")
        assert "given up" in stalled["why"]
        progress = ticket.progress
        assert progress is not None
        assert progress.note.startswith("STALLED")
        poison.unlink()
        ticket.resume()
        report = _ended(ticket)
    _counted(report)
    assert not places.records("JobDocs")
    assert places.records("JobCool") == model


@pytest.mark.timeout(400)
def test_a_paused_job_goes_on_after_a_restart_of_every_server_and_worker(
    project: Path, stack: Stack, database: Any, own_vhost: OwnVhost, tmp_path: Path
) -> None:
    with Places.opened(own_vhost.settings, database) as places:
        places.clear()
        model = places.fill("JobDocs", 200)
    with _nodes(project, own_vhost), Client(own_vhost.settings, operator=True) as starter:
        wait_until_served(starter)
        ticket = starter.submit_job("docs_slow")
        wait_for(lambda: ticket.report().get("moved", 0) > 0, what="the first chunk")
        ticket.pause()
    for server in stack.servers:
        server.down()
        server.up()
    with _nodes(project, own_vhost), Client(own_vhost.settings, operator=True) as starter:
        wait_until_served(starter)
        ticket = starter.job(ticket.guid)
        assert ticket.report()["state"] == "PAUSED"
        ticket.resume()
        report = _ended(ticket)
    _counted(report)
    assert report["moved"] == len(model)
    with Places.opened(own_vhost.settings, database) as places:
        assert not places.records("JobDocs")
        assert places.records("JobCool") == model


@contextmanager
def _nodes(project: Path, own: OwnVhost) -> Iterator[None]:
    """All workers of a vhost of its own: no other worker can carry the job on."""
    with (
        running_worker(project, f"{ALL_QUEUES},{JOB_QUEUES}", env=own.env),
        running_worker(project, ADMIN_QUEUES, env=own.env),
    ):
        yield


@pytest.mark.timeout(240)
def test_what_an_old_ledger_cannot_tell_is_in_doubt(
    project: Path, settings: Settings, database: Any, places: Places, starter: Client, tmp_path: Path
) -> None:
    """A chunk is interrupted after its load, its records change, and the ledger forgets it before it is resumed."""
    model = places.fill("JobDocs", 40)
    poison = tmp_path / "poison"
    poison.touch()
    env = {"KILL_AT": "read back", "KILL_FLAG": str(tmp_path / "flag"), "KILL_ALWAYS": str(poison)}
    with running_worker(project, JOB_QUEUES, "-I", "tests.killing_jobs", env={**env, "BEDS_LEDGER__TTL": "3600"}):
        ticket = starter.submit_job("docs_to_rows")
        wait_for(lambda: ticket.report()["state"] == "STALLED", SECONDS, "the stall")
        poison.unlink()
        with Client(settings) as client:
            client.write("update_record", "JobDocs", {"id": 3, "amount": -3})
            client.write("delete_record", "JobDocs", 4)
        model[3]["amount"] = -3
        places.forget_ledger()
        database["msJobs"].update_many({"_id.guid": ticket.guid}, [{"$set": {"lanes": {"$map": {
            "input": "$lanes", "in": {"$mergeObjects": ["$$this", {"began": {"$dateSubtract": {
                "startDate": "$$this.began", "unit": "hour", "amount": 2}}}]}}}}}])  # fmt: skip
        ticket.resume()
        report = _ended(ticket)
        doubts = {reject["key"]: reject["code"] for reject in ticket.rejects()}
    assert report["in_doubt"] == 2
    assert doubts == {"3": "in_doubt", "4": "in_doubt"}
    hot, cool = places.records("JobDocs"), places.records("JobRows")
    assert hot == {3: model[3]}
    assert cool.keys() == model.keys()  # of 3 the old copy stays beside the record; of 4 only the copy is left
    assert all(cool[key] == record for key, record in model.items() if key not in (3, 4))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rule", ["docs_to_rows", "docs_cold"])
def test_random_kills_and_a_restart_of_each_server_lose_and_double_nothing(
    project: Path, settings: Settings, stack: Stack, database: Any, starter: Client, places: Places, tmp_path: Path,
    rule: str,
) -> None:  # fmt: skip
    model = places.fill("JobDocs", 6000)
    chance = random.Random(rule)
    env = {"BEDS_BROKERS__JOB_WAREHOUSE__TIME_LIMIT": "5", "BEDS_BROKERS__JOB_MIGRATE__TIME_LIMIT": "5",
           "BEDS_COLD__ARCHIVE__URL": str(tmp_path / "cold")}  # fmt: skip
    kills = 0
    with running_worker(project, JOB_QUEUES, env=env) as worker, Changes(settings, model, "JobDocs") as changes:
        ticket = starter.submit_job(rule)
        servers = list(stack.servers)
        while not _is_done(ticket):
            time.sleep(chance.uniform(0.2, 1.0))
            slots = psutil.Process(worker.pid).children()
            if slots:
                with contextlib.suppress(psutil.Error):
                    chance.choice(slots).kill()
                    kills += 1
            if kills % 2 == 1 and servers:
                server = servers.pop()
                server.down()
                server.up()
        report = ticket.report()
    assert kills >= 2, report
    assert report["rejected"] == report["in_doubt"] == 0, report
    # A write that a server's restart left open may be either; each other one is as it was answered.
    open_ones = {int(str(problem.detail.get("id", 0))) for problem in changes.problems if problem.detail.get("id")}
    with Places.opened(settings, database) as after:  # the connection before was lost with its server
        hot = after.records("JobDocs")
        moved = after.records("JobRows") if rule == "docs_to_rows" else after.in_files(tmp_path / "cold" / rule)
    assert not hot.keys() & moved.keys(), "records in two places"
    found = {**hot, **moved}
    assert {k: r for k, r in found.items() if k not in open_ones} == {
        k: r for k, r in model.items() if k not in open_ones
    }


def _is_done(ticket: JobTicket) -> bool:
    try:
        report = ticket.report(timeout=60)
    except BedsError as error:
        assert error.retryable, error
        return False
    if report["state"] == "STALLED" and "given up" in report["why"]:
        ticket.resume(timeout=60)  # by chance, one chunk was killed each time
        return False
    assert report["state"] not in ("FAILED", "STALLED"), report
    return bool(report["state"] == "DONE")
