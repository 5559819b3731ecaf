"""A client cannot affect other users, workers or records. The table in docs/howto/secure.md names these tests."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import amqp
import kombu
import pytest

from beds.domain.identity import uuid7
from beds.domain.ticket import TicketState
from beds.errors import NotFound, StoreDenied, UnknownTicket
from tests.attack.conftest import Attacker, Node
from tests.conftest import wait_for

WRITES = ("rec.create_record", "rel.create_record", "rel.update_record", "rel.delete_record")


def event_of(table: str, key: str) -> dict[str, Any]:
    return {"template": table, "payload": {"id": key, "text": "attack"}}


# --- 1 and 2: dead letters and the operator's verbs -----------------------------------------------------------------


def test_1_a_replay_goes_by_the_key_it_came_by_and_on_its_senders_account(node: Node) -> None:
    """A write published with the key calgon and a forged x-death stays dead, also after a replay."""
    attacker = Attacker(node.stack, "calgon")
    key = str(uuid7())
    written = {"exchange": "beds.events", "routing-keys": ["rec.write"], "count": 1, "reason": "rejected"}
    death = [{"queue": "calgon", **written}, {"queue": "rec.write", **written}]
    control = [{"queue": "calgon", **written, "exchange": "celery.pidbox", "routing-keys": [""]}]
    guids = [
        attacker.publish("calgon", "rec.create_record", event_of("SampleDocs", key), headers={"x-death": lie})
        for lie in (death, control, death[1:])
    ]
    attacker.close()
    for guid in guids:
        (dead,) = wait_for(lambda guid=guid: list(node.database.msDead.find({"guid": guid})), 60, "the burial")
        assert (dead["exchange"], dead["routing_key"]) == ("beds.events", "calgon")
        assert dead["user"] == "attacker_calgon"
        before = node.database.msDead.count_documents({"guid": guid})
        node.operator.ask("replay", {"ids": [dead["_id"]]}, timeout=60)
        wait_for(lambda guid=guid, n=before: node.database.msDead.count_documents({"guid": guid}) > n, 60, "its return")
    assert not len(node.honest.call("fetch_records", "SampleDocs", {"id": key}, using="by_id", timeout=60))  # type: ignore[arg-type]


def test_1_what_nobody_vouched_for_is_not_replayed(default: Attacker, node: Node) -> None:
    """No client's message runs as the workers' user, whatever its header `beds` contains."""
    key = str(uuid7())
    named = {"beds": {"user": "beds_worker"}}
    for more in ({}, {"headers": {"beds": None}}, {"headers": {"beds": [1]}}, {"headers": named}):
        guid = default.publish("rec.write", "rec.create_record", event_of("SampleDocs", key), user_id="", **more)
        (dead,) = wait_for(lambda guid=guid: list(node.database.msDead.find({"guid": guid})), 60, "the burial")
        answer = node.operator.ask("replay", {"ids": [dead["_id"]]}, timeout=60)
        assert answer["done"] == []
        assert "names no AMQP user" in answer["failed"][dead["_id"]]
    assert not len(node.honest.call("fetch_records", "SampleDocs", {"id": key}, using="by_id", timeout=60))  # type: ignore[arg-type]


def test_1_a_replay_begins_now_and_is_its_senders(default: Attacker, node: Node) -> None:
    """A replayed `eta` of 2999 would block a slot forever."""
    keys = [str(uuid7()) for _ in range(4)]
    for key in keys:
        late = {"eta": "2999-01-01T00:00:00+00:00", "beds": None}
        guid = default.publish("rec.write", "rec.create_record", event_of("SampleDocs", key), headers=late)
        (dead,) = wait_for(lambda guid=guid: list(node.database.msDead.find({"guid": guid})), 60, "the burial")
        assert node.operator.ask("replay", {"ids": [dead["_id"]]}, timeout=60)["done"] == [dead["_id"]]
    for key in keys:
        (audit,) = wait_for(lambda key=key: list(node.database.msAudit.find({"record_id": key})), 60, "the audit")
        assert audit["user"] == default.user
    node.honest.call("create_record", "SampleDocs", {"id": str(uuid7())}, timeout=30)


def test_1_an_event_that_cannot_be_replayed_holds_up_no_other(default: Attacker, node: Node) -> None:
    keys = [str(uuid7()) for _ in range(3)]
    ids = []
    for number, key in enumerate(keys):
        more = {"user_id": ""} if number == 1 else {"headers": {"eta": "2020-01-01T00:00:00+00:00"}}
        guid = default.publish("rec.write", "rec.create_record", event_of("SampleDocs", key), **more)
        (dead,) = wait_for(lambda guid=guid: list(node.database.msDead.find({"guid": guid})), 60, "the burial")
        ids.append(dead["_id"])
    answer = node.operator.ask("replay", {"ids": ids}, timeout=60)
    assert answer["done"] == [ids[0], ids[2]]
    assert list(answer["failed"]) == [ids[1]]
    for dead_id in answer["done"]:
        assert node.database.msAudit.count_documents({"record_id": dead_id, "operation": "replay"}) == 1


def dead_of(node: Node, guid: str) -> Any:
    """The dead event of a guid, once it is buried."""
    return wait_for(lambda: node.database.msDead.find_one({"guid": guid}), 60, "the burial")


LATE = {"eta": "2020-01-01T00:00:00+00:00"}
"""What no client may send, and what a replay leaves out."""


def test_1_a_client_cannot_hide_its_dead_event(default: Attacker, node: Node) -> None:
    """RabbitMQ puts its own entry before the one that the client made up; what is expired, nobody buries."""
    lie = {"queue": "zzz", "reason": "expired", "exchange": "beds.events", "routing-keys": ["rec.write"], "count": 1}
    event = event_of("SampleDocs", str(uuid7()))
    dead = dead_of(node, default.publish("rec.write", "rec.create_record", event, headers={"x-death": [lie]} | LATE))
    assert (dead["queue"], dead["reason"]) == ("rec.write", "rejected")
    assert "x-death" not in json.loads(dead["headers"])


def test_1_a_header_that_is_no_object_holds_up_no_other(default: Attacker, node: Node) -> None:
    key = str(uuid7())
    odd, good = (
        dead_of(node, default.publish("rec.write", "rec.create_record", event_of("SampleDocs", key), headers=headers))
        for headers in ({"beds": [1]}, LATE)
    )
    answer = node.operator.ask("replay", {"ids": [odd["_id"], good["_id"]]}, timeout=60)
    assert answer["done"] == [good["_id"]]
    assert list(answer["failed"]) == [odd["_id"]]
    audit = wait_for(lambda: node.database.msAudit.find_one({"record_id": key}), 60, "the audit")
    assert audit["user"] == default.user


def test_1_a_foreign_key_is_not_replayed(node: Node) -> None:
    """Even what the workers' own user sent: its key names no operation, and no exchange to publish it to."""
    key = str(uuid7())
    workers = Attacker(node.stack, "workers", node.own.settings.amqp.broker_url)
    guid = workers.publish("x.rec.write", "rec.create_record", event_of("SampleDocs", key))
    workers.close()
    dead = dead_of(node, guid)
    assert (dead["exchange"], dead["routing_key"]) == ("", "")
    answer = node.operator.ask("replay", {"ids": [dead["_id"]]}, timeout=60)
    assert answer["done"] == []
    assert "routing key" in answer["failed"][dead["_id"]]
    assert node.database.msDead.find_one({"_id": dead["_id"]})["state"] == "dead"
    assert not len(node.honest.call("fetch_records", "SampleDocs", {"id": key}, using="by_id", timeout=60))  # type: ignore[arg-type]


def test_2_a_discard_is_audited(default: Attacker, node: Node) -> None:
    event = event_of("SampleDocs", str(uuid7()))
    dead = dead_of(node, default.publish("rec.write", "rec.create_record", event, headers=LATE))
    assert node.operator.ask("discard", {"ids": [dead["_id"]]}, timeout=60)["done"] == [dead["_id"]]
    ordered = {"template": "msDead", "record_id": dead["_id"], "operation": "discard"}
    audit = wait_for(lambda: node.database.msAudit.find_one(ordered), 60, "the audit")
    assert audit["user"] == "beds_operator"


def test_3_each_users_write_has_its_own_audit_and_lineage(default: Attacker, node: Node) -> None:
    """The same guid, node, environment and body by two users: two writes, two audits, two records of lineage."""
    key, guid = str(uuid7()), str(uuid7())
    node.honest.call("create_record", "SampleRows", {"id": key}, timeout=30)
    reader = Attacker(node.stack, "reader")
    body = {"template": "SampleRows", "using": "by_id", "args": {"id": key}, "limit": None, "cursor": ""}
    change = {"template": "SampleRows", "payload": {"id": key, "text": "same"}}
    assert default.code(default.publish("rel.write", "rel.update_record", change, guid=guid)) == "ok"
    assert reader.code(reader.publish("rel.read", "rel.fetch_records", body, guid=guid)) == "ok"
    reader.close()
    second = node.own.settings.amqp.client_url
    other = Attacker(node.stack, "default", second)
    assert other.code(other.publish("rel.write", "rel.update_record", change, guid=guid)) == "ok"
    other.close()
    wanted = {default.user, other.user}
    audits = node.database.msAudit
    wait_for(
        lambda: {a["user"] for a in audits.find({"record_id": key, "operation": "update_record"})} == wanted,
        60,
        "both audits",
    )
    records = node.database.msLineage
    wait_for(lambda: {r["user"] for r in records.find({"guid": guid})} == wanted | {reader.user}, 60, "the lineage")


def test_2_operators_verbs_are_refused_to_clients(attacker: Attacker, node: Node) -> None:
    for verb in ("replay", "discard", "cancel", "status", "fetch"):
        with pytest.raises(amqp.AccessRefused):
            attacker.publish("operator", f"operator.{verb}", {"ids": ["x"], "guid": "x"})
    if attacker.user == "attacker_calgon":
        for verb in ("replay", "discard"):
            guid = attacker.publish("calgon", f"operator.{verb}", {"ids": ["x"]})
            assert attacker.code(guid) == "malformed_event"


def test_2_an_operators_orders_are_audited_under_the_user_that_rabbitmq_vouches_for(node: Node) -> None:
    ticket = node.honest.submit("create_record", "SampleDocs", {"id": str(uuid7())})
    ticket.result(60)
    node.operator.ask("cancel", {"guid": ticket.guid, "by": "root"}, timeout=30)
    found = wait_for(
        lambda: node.database.msAudit.find_one({"template": "msTickets", "record_id": ticket.guid}), 30, "the audit"
    )
    assert found["user"] == "beds_operator"
    assert found["actor"] == "beds_operator: root"


# --- 3: owners ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ticket(node: Node) -> Any:
    found = node.honest.submit("create_record", "SampleDocs", {"id": str(uuid7())}, idempotency_key=str(uuid7()))
    found.result(60)
    return found


def test_3_a_ticket_of_another_is_unknown(default: Attacker, ticket: Any, node: Node) -> None:
    for verb in ("status", "cancel"):
        guid = default.publish("calgon", f"calgon.{verb}", {"guid": ticket.guid, "by": "beds_app"})
        assert default.code(guid) == "unknown_ticket"
    assert ticket.status().state is TicketState.SUCCESS


def test_3_the_guid_of_another_returns_no_answer_and_blocks_nothing(default: Attacker, node: Node) -> None:
    from beds.client.call import Call

    key, theirs = str(uuid7()), str(uuid7())
    event = node.honest.event(Call("create_record", "SampleRows", {"id": key}), ticket=False, timeout=60)
    guid = event.lineage.guid
    # Before: the attacker uses the guid first, for a write of its own.
    default.publish("rel.write", "rel.create_record", event_of("SampleRows", theirs), guid=guid)
    assert default.code(guid) == "ok"
    reply = node.honest.answer(node.honest.send(event, time.monotonic() + 60), time.monotonic() + 60)
    assert reply["record_id"] == key
    assert len(node.honest.call("fetch_records", "SampleRows", {"id": key}, using="by_id", timeout=60)) == 1  # type: ignore[arg-type]
    # After: the attacker repeats the honest event's guid, and gets answers about its own data only.
    default.replies.clear()
    default.publish("rel.write", "rel.create_record", event_of("SampleRows", key), guid=guid)
    assert default.code(guid) == "idempotency_conflict"  # its own write under that guid was another


def test_3_a_ticket_under_anothers_guid_is_a_ticket_of_ones_own(default: Attacker, node: Node) -> None:
    from beds.client.call import Call

    key = str(uuid7())
    event = node.honest.event(Call("create_record", "SampleRows", {"id": key}), ticket=True, timeout=60)
    guid = event.lineage.guid
    accept = {"tickets": [{"guid": guid, "event_id": f"x.y.{guid}", "queue": "rel.write", "summary": "mine"}]}
    assert default.code(default.publish("calgon", "calgon.accept", accept)) == "ok"
    assert default.code(default.publish("calgon", "calgon.cancel", {"guid": guid})) == "ok"
    node.honest.submit_event(event, time.monotonic() + 60)
    assert node.honest.ticket(guid).wait(60).state is TicketState.SUCCESS
    assert len(node.honest.call("fetch_records", "SampleRows", {"id": key}, using="by_id", timeout=60)) == 1  # type: ignore[arg-type]


def test_3_an_idempotency_key_of_another_leads_nowhere_and_blocks_nobody(default: Attacker, node: Node) -> None:
    name = str(uuid7())
    guid = str(uuid7())
    taken = {"tickets": [{"guid": guid, "event_id": f"x.y.{guid}"}], "idempotency_key": name, "digest": "x"}
    assert default.code(default.publish("calgon", "calgon.accept", taken)) == "ok"
    mine = node.honest.submit("create_record", "SampleDocs", {"id": str(uuid7())}, idempotency_key=name)
    assert mine.guid != guid
    mine.result(60)
    answer = default.answer(default.publish("calgon", "calgon.accept", taken))
    assert answer["result"]["guid"] == guid


def test_3_lists_and_lineage_show_ones_own(default: Attacker, ticket: Any, node: Node) -> None:
    tree = wait_for(lambda: _tree(node, ticket.guid), 60, "the lineage")
    assert tree.event_id == ticket.event_id
    asked = {
        "by_state": ("msTickets", {"state": "SUCCESS"}),
        "by_guid": ("msLineage", {"guid": ticket.guid}),
        "by_root": ("msLineage", {"root_id": ticket.event_id}),
        "since": ("msAudit", {"since": {"$datetime": "2020-01-01T00:00:00+00:00"}}),
    }
    for (using, (template, args)), claimed in itertools.product(asked.items(), ({}, {"user": "beds_app"})):
        question = {"template": template, "using": using, "args": args | claimed, "limit": 100, "cursor": ""}
        answer = default.answer(default.publish("rec.read", "rec.fetch_records", question))
        assert answer["status"] == "SUCCESS", answer
        users = {record["user"] for record in answer["result"]["records"]}
        assert users <= {default.user}, using
    operators = {"msLogs": "latest", "msDead": "waiting", "msMetrics": "recent", "msTickets": "all_by_state"}
    for template, using in operators.items():
        question = {"template": template, "using": using, "args": {}, "limit": 1, "cursor": ""}
        assert default.code(default.publish("rec.read", "rec.fetch_records", question)) == "store_denied"


def _tree(node: Node, guid: str) -> Any:
    try:
        return node.honest.lineage(guid)
    except NotFound:
        return None


def test_3_an_event_without_a_user_is_none(default: Attacker) -> None:
    guid = default.publish("rel.write", "rel.create_record", event_of("SampleRows", str(uuid7())), user_id=None)
    assert default.code(guid) == "malformed_event"
    with pytest.raises(amqp.PreconditionFailed):
        default.publish("rel.write", "rel.create_record", {}, user_id="beds_app")


def test_3_a_name_in_the_header_is_the_workers_to_give(default: Attacker, node: Node) -> None:
    key = str(uuid7())
    guid = default.publish("rel.write", "rel.create_record", event_of("SampleRows", key), beds={"user": "beds_app"})
    assert default.code(guid) == "ok"
    audit = wait_for(lambda: node.database.msAudit.find_one({"record_id": key}), 60, "the audit")
    assert audit["user"] == default.user


# --- 4 and 5: replies and keys --------------------------------------------------------------------------------------


def waiting(node: Node, queue: str) -> int:
    """Messages in a queue at this moment; the management API would tell of some seconds ago."""
    with kombu.Connection(node.own.settings.amqp.broker_url) as connection:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def test_4_a_reply_goes_to_no_queue(default: Attacker, node: Node) -> None:
    before = waiting(node, "job.aggregate")
    for target in ("job.aggregate", "beds.dead", "rec.write", "beds.logs"):
        question = {"template": "SampleRows", "using": "by_id", "args": {"id": "x"}, "limit": 1, "cursor": ""}
        default.publish("rel.read", "rel.fetch_records", question, reply_to=target)
    assert default.code(default.publish("rel.read", "rel.fetch_records", question)) == "ok"
    time.sleep(2)  # one of its slots may be behind
    assert waiting(node, "job.aggregate") == before


def test_5_a_delayed_key_and_an_eta_are_refused(attacker: Attacker) -> None:
    delayed = ".".join(["0"] * 27 + ["1"])
    for key in (f"{delayed}.rec.write", f"{delayed}.rel.read", "rec.write.x", "#", "job.aggregate", "audit", ""):
        for exchange in ("beds.events", "beds.logs"):
            with pytest.raises(amqp.AccessRefused):
                attacker.publish(
                    key, "rec.create_record", {}, exchange=exchange, headers={"eta": "2999-01-01T00:00:00+00:00"}
                )


def test_5_an_eta_by_an_allowed_key_is_turned_away(default: Attacker) -> None:
    for eta in ("2999-01-01T00:00:00+00:00", "never", 5):
        guid = default.publish("rec.write", "rec.create_record", event_of("SampleDocs", "x"), headers={"eta": eta})
        assert default.code(guid) == "malformed_event"


def test_5_only_logs_come_in_through_beds_logs(attacker: Attacker, node: Node) -> None:
    forged = {
        "event_id": f"forged.{uuid7()}",
        "root_id": "x",
        "at": 1.0,
        "depth": 0,
        "kind": "event",
        "guid": str(uuid7()),
    }
    for task, kind in (
        ("admin.write_logs", "lineage"), ("admin.write_audit", "audit"), ("admin.write_metrics", "metric"),
    ):  # fmt: skip
        for key in ("log.info", "lineage", "audit"):
            arguments = {"kind": kind, "common": {}, "records": [forged]}
            with contextlib.suppress(amqp.AccessRefused):
                attacker.publish(key, task, arguments, exchange="beds.logs")
    # What the honest client does from now on is told behind it, on the same queues.
    key = str(uuid7())
    node.honest.call("create_record", "SampleRows", {"id": key}, timeout=60)
    audit = wait_for(lambda: node.database.msAudit.find_one({"record_id": key}), 60, "the honest audit")
    wait_for(lambda: node.database.msLineage.find_one({"event_id": audit["parent_id"]}), 60, "the honest lineage")
    for name in ("msLineage", "msAudit"):
        either = {"$or": [{"event_id": forged["event_id"]}, {"_id": forged["event_id"]}]}
        assert not node.database[name].count_documents(either)


def test_5_a_log_is_its_senders(node: Node) -> None:
    """Whomever it names: an operator reads whose user has sent it."""
    attacker = Attacker(node.stack, "logger")
    record = {
        "event_id": f"x.y.{uuid7()}", "root_id": "x", "at": time.time(), "seq": 1, "levelno": 40, "level": "ERROR",
        "logger": "honest", "message": "", "user": "beds_app",
    }  # fmt: skip
    common = {"node": "ms", "host": "h", "pid": 1, "user": "beds_app"}
    arguments = {"kind": "log", "common": common, "records": [record]}
    attacker.publish("log.error", "admin.write_logs", arguments, exchange="beds.logs")
    attacker.close()
    found = wait_for(lambda: node.database.msLogs.find_one({"_id": record["event_id"]}), 60, "the log record")
    assert found["user"] == attacker.user


# --- 7 to 9: what must survive anything -----------------------------------------------------------------------------


def test_7_a_ticket_of_no_form_does_not_stop_the_burials(default: Attacker, node: Node) -> None:
    longest = str(uuid7()) + "a" * 200
    for guid in (longest, "x", "$gt"):
        default.publish("rec.write", "rec.create_record", {}, guid=guid, beds={"ticket": True, "event_id": "x"})
    # One after the other: a consumer that ended over the first ones would bury them again with the next.
    for _ in range(3):
        last = default.publish("rec.write", "rec.create_record", {}, user_id="")
        wait_for(lambda last=last: node.database.msDead.count_documents({"guid": last}), 60, "the burial of the last")
    assert node.database.msDead.count_documents({"guid": {"$regex": f"^{longest[:36]}"}}) == 1
    wait_for(lambda: not waiting(node, "beds.dead"), 60, "the end of the dead letters")


DEEP = json.loads("[" * 600 + "]" * 600)
"""Deeper than pickle can follow, and far below the size limit of a message."""


def test_7_what_is_nested_takes_no_slot_for_good(attacker: Attacker, node: Node) -> None:
    """Nested positional arguments or headers: Celery cannot pass them to a slot, and the slot would be lost."""
    key, task = (
        ("calgon", "calgon.status")
        if attacker.user.endswith(("calgon", "default"))
        else ("rec.read", "rec.fetch_records")
    )
    body: dict[str, Any] = {
        "template": "SampleDocs",
        "using": "by_id",
        "args": {"id": "x"},
        "limit": None,
        "cursor": "",
        "guid": "",
    }
    if attacker.user.endswith("logger"):
        key, task, body = "log.info", "admin.write_logs", {"kind": "log", "common": {}, "records": [{}]}
    exchange = "beds.logs" if key.startswith("log.") else "beds.events"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # for py-amqp, which writes the header
    for _ in range(8):
        attacker.publish(key, task, body, exchange=exchange, headers={"x-deep": DEEP})
        attacker.publish(key, task, body, exchange=exchange, places=DEEP)
    sys.setrecursionlimit(limit)
    for _ in range(8):
        node.honest.call("fetch_records", "SampleDocs", {"id": "x"}, using="by_id", timeout=30)
        node.honest.submit("create_record", "SampleDocs", {"id": str(uuid.uuid4())}, timeout=30).result(30)


def test_9_a_body_of_too_many_values_is_turned_away(default: Attacker) -> None:
    payload = {"id": str(uuid7()), "list": [0] * 300_000}
    guid = default.publish("rel.write", "rel.create_record", {"template": "SampleRows", "payload": payload})
    assert default.code(guid) == "malformed_event"


def test_9_every_ticket_has_an_end(default: Attacker, node: Node) -> None:
    guid = str(uuid7())
    accept = {"tickets": [{"guid": guid, "event_id": f"x.y.{guid}"}]}
    assert default.code(default.publish("calgon", "calgon.accept", accept)) == "ok"
    found = node.database.msTickets.find_one({"_id.guid": guid})
    assert found["_id"]["user"] == default.user
    assert found["accepted_at"] < found["expires_at"] < datetime.now(UTC) + timedelta(days=8)
    index = node.database.msTickets.index_information()["expires"]
    assert (index["key"], index["expireAfterSeconds"]) == ([("expires_at", 1)], 0)


def test_no_client_reads_through_the_python_client_what_is_an_operators(node: Node) -> None:
    for template, using in (("msLogs", "latest"), ("msDead", "waiting"), ("msTickets", "all_by_state")):
        with pytest.raises(StoreDenied):
            node.honest.call(
                "fetch_records", template, {"state": "SUCCESS"} if using == "all_by_state" else {}, using=using
            )
    with pytest.raises(UnknownTicket):
        node.honest.ticket(str(uuid7())).status(5)
