"""Lineage: the tree of a request, read over AMQP, with real workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beds.client.call import Call
from beds.client.client import Client
from beds.client.lineage import Node
from beds.config import Settings
from beds.domain.identity import uuid7
from beds.domain.trace import trace_context
from beds.errors import NotFound
from beds.stack.stack import Stack
from beds.wire.reply import parse_reply, read_reply
from tests.conftest import ADMIN_QUEUES, ALL_QUEUES, ROOT, OwnVhost, run, running_worker, wait_for, wait_until_served

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def tree_of(client: Client, event: str, size: int) -> Node:
    """The tree, after all its records are stored."""

    def complete() -> Node | None:
        try:
            found = client.lineage(event)
        except NotFound:
            return None
        return found if len(list(found.walk())) >= size else None

    found: Node = wait_for(complete, 30, f"a tree of {size}")
    return found


def shape(node: Node) -> Any:
    name = node.name if node.kind != "log" else f"{node.record['level']} {node.name}"
    return (node.kind, name, node.outcome, sorted(shape(child) for child in node.children))


@pytest.fixture
def spawning_worker(project: Path, own_vhost: OwnVhost) -> Iterator[OwnVhost]:
    env = own_vhost.env | {"PYTHONPATH": str(ROOT), "BEDS_METRICS__PROMETHEUS": ""}
    options = ("-I", "tests.spawning_task", "-c", "4")
    with (
        running_worker(project, ALL_QUEUES, *options, env=env),
        running_worker(project, ADMIN_QUEUES, env=env),
        Client(own_vhost.settings) as client,
    ):
        wait_until_served(client)
        yield own_vhost


def test_one_request_and_all_that_it_set_off(spawning_worker: OwnVhost) -> None:
    with Client(spawning_worker.settings) as client:
        key = str(uuid7())
        client.call("create_record", "SampleRows", {"id": key})
        call = Call("create_record", "SampleDocs", {"id": key}, actor="alice")
        with trace_context(TRACE):
            event = replace(client.event(call, ticket=False, timeout=60), task="rec.spawning")
        pending = client.transport.send(event, float("inf"))
        read_reply(parse_reply(pending.reply.result(60)))
        tree = tree_of(client, event.lineage.guid, 11)
    traced = {node.name: node.record.get("traceparent") for node in tree.walk() if node.kind == "event"}
    assert set(traced.values()) == {TRACE}, traced
    update: Any = ("event", "SampleRows.update_record", "ok", [
        ("audit", "SampleRows.update_record", "ok", []), ("call", "samples_update", "ok", []),
    ])  # fmt: skip
    delete: Any = ("event", "SampleRows.delete_record", "not_found", [
        ("audit", "SampleRows.delete_record", "not_found", []), ("call", "samples_delete", "not_found", []),
    ])  # fmt: skip
    assert shape(tree) == (
        "event", "SampleDocs.spawning", "ok", sorted([
            ("log", "WARNING setting off two more", "", []),
            update,
            delete,
            ("log", "INFO as expected", "", []),
            ("call", "docs_create", "ok", []),
            ("audit", "SampleDocs.create_record", "ok", []),
        ]),
    )  # fmt: skip
    assert {node.depth for node in tree.walk() if node.kind in ("call", "audit")} == {1, 2}
    for node in tree.walk():
        for child in node.children:
            assert child.parent_id == node.event_id
            assert child.depth == node.depth + 1
            assert child.record["root_id"] == tree.event_id
    assert tree.record["actor"] == "alice"
    assert tree.record["user"] == "beds_app"
    assert tree.record["duration_ms"] > 0


def test_a_failed_event_tells_why_and_a_calls_duration(client: Client, project: Path) -> None:
    ticket = client.submit("create_record", "SampleRows", {"id": "same"})
    ticket.wait(30)
    again = client.submit("create_record", "SampleRows", {"id": "same"})
    again.wait(30)
    tree = tree_of(client, again.guid, 3)
    assert tree.outcome == "duplicate_key"
    (call,) = [node for node in tree.walk() if node.kind == "call"]
    assert call.outcome == "duplicate_key"
    shown = run(project, "beds", "lineage", again.event_id)
    assert shown.returncode == 0, shown.stderr
    assert "duplicate_key" in shown.stdout
    assert "audit SampleRows.create_record same by beds_app" in shown.stdout
    as_json = json.loads(run(project, "beds", "lineage", again.guid, "--json").stdout)
    assert as_json["event_id"] == again.event_id
    assert {child["kind"] for child in as_json["children"]} == {"call", "audit"}
    unknown = run(project, "beds", "lineage", str(uuid7()))
    assert unknown.returncode == 66
    assert "nothing is known" in unknown.stderr


def test_a_query_by_root_uses_an_index(settings: Settings, stack: Stack) -> None:
    from pymongo import MongoClient

    from beds.adapters.mongo import stored_commands

    assert settings.schema_.dba.rec is not None
    with MongoClient[dict[str, Any]](settings.schema_.dba.rec.uri.get_secret_value()) as mongo:
        database = mongo[settings.schema_.dba.rec.database]
        source = database["beds_objects"].find_one({"_id": "lineage_by_root"})
        assert source is not None
        target = stored_commands.parse({**source, "name": "lineage_by_root"})
        values = {p.name: p.default for p in target.params} | {"root_id": "x", "limit": 10}
        command = stored_commands.fill(target, values) | {"cursor": {}}
        plan = json.dumps(database.command("explain", command, verbosity="queryPlanner"), default=str)
    assert "COLLSCAN" not in plan
    assert plan.count("IXSCAN") >= 3


def test_a_question_from_outside_is_no_part_of_a_story(client: Client) -> None:
    ticket = client.submit("create_record", "SampleRows", {"id": str(uuid7())})
    ticket.wait(30)
    tree = tree_of(client, ticket.guid, 3)
    assert [node.name for node in tree.walk() if node.kind == "event"] == ["SampleRows.create_record"]
