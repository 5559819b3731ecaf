"""Jobs with real workers: their ends, their order, what they refuse, and whose they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from beds.client.client import Client
from beds.client.jobs import JobTicket
from beds.config import Settings
from beds.domain.ticket import TicketState
from beds.errors import (
    JobAlreadyRunning,
    JobNotResumable,
    MissingField,
    PermissionDenied,
    TicketRevoked,
    UnknownField,
    UnknownRule,
    UnknownTicket,
    WrongType,
)
from beds.worker.slots.pool import JOB_NICENESS
from tests.conftest import ALL_QUEUES, JOB_QUEUES, running_worker, wait_for
from tests.records_of_jobs import Places

SECONDS = 120.0


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cold")


@pytest.fixture(scope="module")
def job_worker(project: Path, workers: None, cold: Path) -> Iterator[None]:
    with running_worker(project, JOB_QUEUES, env={"BEDS_COLD__ARCHIVE__URL": str(cold)}):
        yield


@pytest.fixture
def places(database: Any, settings: Settings, job_worker: None) -> Iterator[Places]:
    with Places.opened(settings, database) as found:
        found.clear()
        yield found


@pytest.fixture
def starter(settings: Settings, job_worker: None) -> Iterator[Client]:
    """A client that may start jobs."""
    with Client(settings, operator=True) as found:
        yield found


def ended(ticket: JobTicket, state: str = "DONE") -> dict[str, Any]:
    def look() -> Any:
        report = ticket.report()
        assert report["state"] == state or report["state"] not in ("FAILED", "STALLED", "DONE", "CANCELLED"), report
        return report["state"] == state and report

    return wait_for(look, SECONDS, f"the state {state}")  # type: ignore[no-any-return]


def test_records_move_to_another_store_and_back(places: Places, starter: Client) -> None:
    model = places.fill("JobDocs", 1200)
    ticket = starter.submit_job("docs_to_rows")
    report = ended(ticket)
    assert (report["read"], report["moved"], report["total"]) == (1200, 1200, 1200)
    assert not places.records("JobDocs")
    assert places.records("JobRows") == model
    status = ticket.status()
    assert status.state is TicketState.SUCCESS
    assert ticket.result().record["moved"] == 1200  # type: ignore[union-attr]
    ended(starter.submit_job("rows_to_docs"))
    assert places.records("JobDocs") == model
    assert not places.records("JobRows")


def test_a_copy_leaves_the_source_as_it_is_and_repeats_harmlessly(places: Places, starter: Client) -> None:
    model = places.fill("JobDocs", 100)
    assert ended(starter.submit_job("docs_copied"))["there"] == 0
    again = ended(starter.submit_job("docs_copied"))
    assert (again["moved"], again["there"]) == (100, 100)
    assert places.records("JobDocs") == places.records("JobRows") == model


def test_bad_records_are_named_with_reasons_and_the_rest_moves(places: Places, starter: Client, database: Any) -> None:
    model = places.fill("JobDocs", 10_000)
    bad = {key: key % 3 for key in range(50, 10_000, 100)}
    for key, kind in bad.items():
        if kind == 0:  # another record has the key already
            database["job_docs"].update_one({"_id": key}, {"$set": {"note": "old"}})
        elif kind == 1:  # not unique in the target
            database["job_docs"].update_one({"_id": key}, {"$set": {"unique": f"u{key}"}})
        else:  # more digits than the template allows
            database["job_docs"].update_one({"_id": key}, [{"$set": {"price": {"$toDecimal": "1.234"}}}])
    taken = [key for key, kind in bad.items() if kind == 0]
    places.take(taken, unique=[f"u{key}" for key, kind in bad.items() if kind == 1])
    ticket = starter.submit_job("docs_to_rows")
    report = ended(ticket)
    rejects = {int(reject["key"]): (reject["code"], reject["field"]) for reject in ticket.rejects()}
    wanted = {0: ("duplicate_key", "id"), 1: ("duplicate_key", "one"), 2: ("out_of_range", "price")}
    assert rejects == {key: wanted[kind] for key, kind in bad.items()}
    assert (report["moved"], report["rejected"]) == (9_900, 100)
    assert set(places.records("JobDocs")) == set(bad)
    moved = places.records("JobRows")
    assert all(moved[key] == record for key, record in model.items() if key not in bad)


def test_a_job_with_too_many_rejects_stalls_and_resume_goes_on(places: Places, starter: Client) -> None:
    places.fill("JobDocs", 100)
    places.take(range(1, 6))
    ticket = starter.submit_job("docs_strict")
    report = ended(ticket, "STALLED")
    assert "max_rejects = 3" in report["why"]
    assert report["moved"] < 100
    progress = ticket.progress
    assert progress is not None
    assert progress.note.startswith("STALLED: ")
    places.untake(range(1, 6))
    ticket.resume()
    assert ended(ticket)["state"] == "DONE"
    assert set(places.records("JobDocs")) == set(range(1, 6))


def test_pause_resume_and_cancel_leave_both_sides_consistent(places: Places, starter: Client) -> None:
    model = places.fill("JobDocs", 400)
    ticket = starter.submit_job("docs_slow")
    wait_for(lambda: ticket.report().get("moved", 0) > 0, what="the first chunk")
    assert ticket.pause()["state"] == "PAUSED"
    assert ticket.pause()["state"] == "PAUSED"
    wait_for(lambda: places.is_still("JobCool"), what="the rest")
    moved = ticket.report()["moved"]
    assert 0 < moved < 400
    assert len(places.records("JobCool")) == moved
    ticket.resume()
    with pytest.raises(JobNotResumable, match="RUNNING"):
        ticket.resume()
    wait_for(lambda: ticket.report()["moved"] > moved, what="the next chunk")
    ticket.cancel(by="a test")
    report = ended(ticket, "CANCELLED")
    assert report["moved"] < 400
    hot, cool = places.records("JobDocs"), places.records("JobCool")
    assert not hot.keys() & cool.keys()
    assert {**hot, **cool} == model
    with pytest.raises(TicketRevoked, match="a test"):
        ticket.result()


def test_a_paused_job_survives_the_end_of_its_workers(
    project: Path, workers: None, settings: Settings, database: Any
) -> None:
    with Places.opened(settings, database) as places, Client(settings, operator=True) as starter:
        places.clear()
        model = places.fill("JobDocs", 200)
        with running_worker(project, JOB_QUEUES):
            ticket = starter.submit_job("docs_slow")
            wait_for(lambda: ticket.report().get("moved", 0) > 0, what="the first chunk")
            ticket.pause()
        ticket.resume()
        with running_worker(project, JOB_QUEUES):
            ended(ticket)
        assert places.records("JobCool") == model


def test_one_job_of_a_rule_runs_at_a_time(places: Places, starter: Client) -> None:
    places.fill("JobDocs", 200)
    first = starter.submit_job("docs_slow")
    wait_for(lambda: first.report()["state"] == "RUNNING", what="the start")
    with pytest.raises(JobAlreadyRunning) as refused:
        starter.submit_job("docs_slow").result(30)
    assert refused.value.detail["guid"] == first.guid
    second = starter.submit_job("docs_slow")
    wait_for(lambda: second.report()["state"] == "FAILED", what="the refusal")
    first.cancel()
    ended(first, "CANCELLED")


def test_a_dry_run_writes_nothing_and_says_what_would_be_refused(
    places: Places, starter: Client, database: Any
) -> None:
    model = places.fill("JobDocs", 40)
    places.take([7])
    before = places.writes()
    report = starter.submit_job("docs_to_rows", dry_run=True).result(60).record  # type: ignore[union-attr]
    assert places.writes() == before
    assert report["looked_at"] == report["total"] == 40
    assert report["sample"][0] == model[1]
    assert [(r["key"], r["code"]) for r in report["rejects"]] == [("7", "duplicate_key")]
    assert places.records("JobDocs") == model


def test_files_are_listed_read_by_another_program_and_restored(places: Places, starter: Client, cold: Path) -> None:
    model = places.fill("JobDocs", 1500)
    ticket = starter.submit_job("docs_cold")
    report = ended(ticket)
    assert report["moved"] == 1500
    assert not places.records("JobDocs")
    assert places.in_files(cold / "docs_cold") == model
    files = list(ticket.files())
    assert sum(file["rows"] for file in files) == 1500
    assert {file["id"].split("/")[0] for file in files} == {"year_of_at=2024", "year_of_at=2025"}
    assert not starter.submit_job("docs_cold", verify=ticket.guid).result(60).record["problems"]  # type: ignore[union-attr]
    back = starter.submit_job("docs_cold", restore=ticket.guid)
    assert ended(back)["moved"] == 1500
    assert places.records("JobDocs") == model
    assert places.in_files(cold / "docs_cold") == {}
    assert not list((cold / "docs_cold").rglob("*.parquet"))


def test_a_file_that_was_changed_by_one_byte_is_refused_by_name(places: Places, starter: Client, cold: Path) -> None:
    model = places.fill("JobRows", 300)
    ticket = starter.submit_job("rows_cold")
    ended(ticket)
    damaged = sorted(file["id"] for file in ticket.files())[2]
    place = cold / "rows_cold" / damaged
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(bytes(data))
    problems = starter.submit_job("rows_cold", verify=ticket.guid).result(60).record["problems"]  # type: ignore[union-attr]
    assert len(problems) == 1
    assert damaged in problems[0]
    back = starter.submit_job("rows_cold", restore=ticket.guid)
    report = ended(back, "STALLED")
    assert damaged in report["why"]
    data[len(data) // 2] ^= 1
    place.write_bytes(bytes(data))
    back.resume()
    ended(back)
    assert places.records("JobRows") == model


def test_files_of_a_cancelled_job_are_in_the_manifest(places: Places, starter: Client, cold: Path) -> None:
    model = places.fill("JobDocs", 400)
    ticket = starter.submit_job("docs_cold_slowly")
    wait_for(lambda: ticket.report().get("moved", 0) > 0, what="the first chunk")
    ticket.cancel()
    report = ended(ticket, "CANCELLED")
    assert 0 < report["moved"] < 400
    hot, files = places.records("JobDocs"), places.in_files(cold / "docs_cold_slowly")
    assert not hot.keys() & files.keys()
    assert {**hot, **files} == model


def test_what_was_moved_to_another_template_is_restored(places: Places, starter: Client) -> None:
    model = places.fill("JobDocs", 120)
    there = starter.submit_job("docs_cool")
    ended(there)
    assert places.records("JobCool") == model
    ended(starter.submit_job("docs_cool", restore=there.guid))
    assert places.records("JobDocs") == model
    assert not places.records("JobCool")


def test_a_record_with_a_field_of_no_template_is_not_moved(places: Places, starter: Client, database: Any) -> None:
    places.fill("JobDocs", 5)
    database.command("collMod", "job_docs", validationLevel="off")
    database["job_docs"].update_one({"_id": 2}, {"$set": {"surplus": 1}})
    for rule in ("docs_to_rows", "docs_cold"):
        ticket = starter.submit_job(rule)
        ended(ticket)
        assert [(r["key"], r["code"], r["field"]) for r in ticket.rejects()] == [("2", "unknown_field", "surplus")]
    assert set(places.records("JobDocs")) == {2}


def test_who_has_no_key_may_start_no_job_and_sees_none(places: Places, starter: Client, client: Client) -> None:
    places.fill("JobDocs", 10)
    with pytest.raises(PermissionDenied):
        client.submit_job("docs_cool")
    ticket = starter.submit_job("docs_cool")
    ended(ticket)
    theirs = client.job(ticket.guid)
    for ask in (theirs.report, theirs.pause, theirs.resume, theirs.cancel):
        with pytest.raises(UnknownTicket):
            ask()
    for nothing in (theirs.rejects, theirs.pages, theirs.files):
        with pytest.raises(UnknownTicket):
            list(nothing())
    assert not client.fetch("msJobs", "of_user", {})


@pytest.mark.parametrize(
    ("name", "args", "error", "field"),
    [
        ("docs_coool", {}, UnknownRule, None),
        ("docs_cool", {"belo": 1}, UnknownField, "belo"),
        ("docs_cool", {"below": "x"}, WrongType, "below"),
        ("weather_needs", {}, UnknownRule, None),
    ],
)
def test_a_wrong_start_is_refused_before_anything_is_sent(
    starter: Client, name: str, args: dict[str, Any], error: type[Exception], field: str | None
) -> None:
    with pytest.raises(error) as refused:
        starter.submit_job(name, args)
    assert field is None or refused.value.detail["field"] == field  # type: ignore[attr-defined]


def test_the_same_idempotency_key_is_the_same_job(places: Places, starter: Client) -> None:
    places.fill("JobDocs", 20)
    first = starter.submit_job("docs_cool", idempotency_key="once-and-never-again")
    ended(first)
    assert starter.submit_job("docs_cool", idempotency_key="once-and-never-again").guid == first.guid


def test_a_job_is_one_tree_with_a_record_for_each_chunk(places: Places, starter: Client) -> None:
    places.fill("JobDocs", 200)
    ticket = starter.submit_job("docs_cool")
    report = ended(ticket)

    def whole() -> Any:
        tree = starter.lineage(ticket.guid)
        kinds = [node.kind for node in tree.walk()]
        return kinds.count("audit") == report["chunks"] <= kinds.count("event") - 1 and tree

    tree = wait_for(whole, what="the lineage")
    assert not [node for node in tree.walk() if node.kind == "call" and node.depth > 1]
    assert tree.name == "job.warehouse"
    assert {node.name for node in tree.children if node.kind == "event"} == {"job.warehouse.chunk"}


def test_an_aggregation_is_the_same_over_both_stores(places: Places, starter: Client) -> None:
    places.fill("JobDocs", 90)
    places.fill("JobRows", 90)
    results = []
    for rule in ("amounts_of_docs", "amounts_of_rows"):
        ticket = starter.submit_job(rule)
        assert ended(ticket)["read"] == 3
        results.append([record for page in ticket.pages() for record in page])
    assert results[0] == results[1]
    assert sum(record["records"] for record in results[0]) == 90 * 3
    assert json.dumps(results[0][0])


def test_an_argument_that_nobody_gives_is_named(starter: Client) -> None:
    rule = starter.templates.jobs["weather_cool"]
    weather = starter.templates["Weather"]
    with pytest.raises(MissingField, match="before"):
        rule.model_copy(update={"args": {}}).arguments(weather, {})


def test_a_job_is_polled_because_its_event_gets_no_reply(places: Places, starter: Client) -> None:
    places.fill("JobDocs", 20)
    for key in (None, "polled"):
        ticket = starter.submit_job("docs_cool", idempotency_key=key)
        assert ticket._handle.pending is None
        assert ticket.result(SECONDS).record["state"] == "DONE"  # type: ignore[union-attr]


def test_slots_of_jobs_leave_the_processor_to_others(job_worker: None, project: Path) -> None:
    def niceness(queues: str) -> set[int]:
        """Of the slots of the workers for these queues; a slot has its worker's command line, and no children."""
        workers = [
            worker
            for worker in psutil.process_iter(["cmdline", "cwd"])
            if queues in (worker.info["cmdline"] or []) and worker.info["cwd"] == str(project)
        ]
        return {slot.nice() for worker in workers for slot in worker.children()}

    (of_jobs,), (of_others,) = (wait_for(lambda q=q: niceness(q), what="slots") for q in (JOB_QUEUES, ALL_QUEUES))
    assert of_jobs == of_others + JOB_NICENESS


def test_two_nodes_start_a_due_rule_once_a_missed_one_once_and_none_after_a_clock_was_set_back(
    project: Path, workers: None, settings: Settings, database: Any, tmp_path: Path
) -> None:
    schema = tmp_path / "schema"
    shutil.copytree(project / "schema", schema)
    rule = (schema / "jobs" / "docs_cool.toml").read_text()
    jobs = database["msJobs"]
    jobs.delete_many({"rule": "docs_due"})

    def runs() -> list[dict[str, Any]]:
        return list(jobs.find({"rule": "docs_due"}).sort("due_at"))

    def ticks(name: str) -> int:
        found = database["msMetrics"].find({"meta.node": {"$regex": f"{name}$"}, "meta.operation": "tick"})
        return sum(record["count"] for record in found)

    def started(name: str, at: datetime) -> list[dict[str, Any]]:
        """The runs after two nodes have looked for what is due, twice at least."""
        before = ticks(name)
        (schema / "jobs" / "docs_due.toml").write_text(f'{rule}[schedule]\nat = "{at:%H:%M}"\n')
        nodes = [running_worker(project, JOB_QUEUES, env={
            "BEDS_NODE__NAME": f"{number}{name}", "BEDS_SCHEMA__PATH": str(schema), "BEDS_METRICS__INTERVAL": "0.5"
        }) for number in ("one", "two")]  # fmt: skip
        with nodes[0], nodes[1]:
            wait_for(lambda: ticks(name) >= before + 2, SECONDS, "the ticks")
            wait_for(lambda: all(run["state"] == "DONE" for run in runs()), SECONDS, "the ends of the runs")
        return runs()

    with Places.opened(settings, database) as places:
        places.clear()
        model = places.fill("JobDocs", 200)
        moment, day = datetime.now(UTC), timedelta(days=1)
        (first,) = started("due", moment)
        assert places.records("JobCool") == model
        jobs.update_one({"_id": first["_id"]}, {"$set": {"due_at": first["due_at"] - 3 * day}})
        an_hour_ago = (moment - timedelta(hours=1)).replace(second=0, microsecond=0)
        _, second = started("missed", an_hour_ago)
        assert second["due_at"] == an_hour_ago
        jobs.update_one({"_id": second["_id"]}, {"$set": {"due_at": second["due_at"] + day}})
        assert len(started("back", moment)) == 2
        jobs.delete_many({"rule": "docs_due"})


def test_a_job_is_reported_and_steered_by_its_actor_only(places: Places, starter: Client) -> None:
    places.fill("JobDocs", 100)
    ticket = starter.submit_job("docs_slow", actor="ann")
    wait_for(lambda: ticket.report().get("moved", 0) > 0, what="the first chunk")
    guid, amqp = ticket.guid, starter.settings.amqp
    # The same AMQP user, but not as an operator, who sees everybody's.
    own = starter.settings.model_copy(update={"amqp": amqp.model_copy(update={"url": amqp.operator_url})})
    with Client(own) as client:
        assert client.job(guid, actor="ann").report()["state"] == client.job(guid).report()["state"]
        strangers = client.job(guid, actor="bob")
        for ask in (strangers.report, strangers.pause, strangers.resume, strangers.cancel, strangers.status):
            with pytest.raises(UnknownTicket):
                ask()
        with pytest.raises(UnknownTicket):
            list(strangers.rejects())
    assert ended(ticket)["moved"] == 100


def test_a_job_is_verified_and_restored_by_its_actor_only(places: Places, starter: Client, cold: Path) -> None:
    places.fill("JobDocs", 50)
    ticket = starter.submit_job("docs_cold", actor="ann")
    ended(ticket)
    for given in ({"verify": ticket.guid}, {"restore": ticket.guid}):
        with pytest.raises(UnknownTicket):
            starter.submit_job("docs_cold", actor="bob", **given).result(60)  # type: ignore[arg-type]
    assert not places.records("JobDocs")
    verified = starter.submit_job("docs_cold", verify=ticket.guid, actor="ann").result(60)
    assert not verified.record["problems"]  # type: ignore[union-attr]
    assert ended(starter.submit_job("docs_cold", restore=ticket.guid))["moved"] == 50, "the application sees every job"
