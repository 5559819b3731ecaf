"""The wire contract, as a client in another language uses it: bare AMQP and JSON, without BEDS or Celery.

Written from docs/reference/wire.md alone; where a test here changes, that page does.
"""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import amqp
import pytest

from beds.config import Settings
from tests.conftest import wait_for

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def uuid7() -> str:
    """RFC 9562: 48 bits of Unix milliseconds, then version, variant and random bits."""
    value = int(time.time() * 1000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


class Peer:
    """A client with features of any AMQP 0-9-1 library: a channel in confirm mode, and direct reply-to."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._user = unquote(parts.username or "")
        self._connection = amqp.Connection(
            f"{parts.hostname}:{parts.port}", self._user, unquote(parts.password or ""), virtual_host=parts.path[1:]
        )
        self._connection.connect()
        self.channel = self._connection.channel()
        self._replies: dict[str, Any] = {}
        self.channel.basic_consume("amq.rabbitmq.reply-to", no_ack=True, callback=self._take)

    def close(self) -> None:
        self._connection.close()

    def _take(self, message: amqp.Message) -> None:
        self._replies[message.properties["correlation_id"]] = json.loads(message.body)

    def publish(self, key: str, task: str, arguments: Any, *, ticket: bool = False, guid: str = "") -> str:
        guid = guid or uuid7()
        event_id = f"elsewhere.test.{guid}"
        headers = {
            "lang": "py", "id": guid, "task": task, "root_id": guid, "parent_id": None, "group": None,
            "retries": 0, "eta": None, "expires": None, "timelimit": [None, None],
            "argsrepr": "", "kwargsrepr": task, "origin": "another language",
            "beds": {
                "event_id": event_id, "parent_id": "", "root_id": event_id, "depth": 0, "node": "elsewhere",
                "env": "test", "ticket": ticket, "submitted_at": datetime.now(UTC).isoformat(),
            },
        }  # fmt: skip
        message = amqp.Message(
            json.dumps([[], arguments, EMBED]),
            content_type="application/json", content_encoding="utf-8", delivery_mode=2,
            correlation_id=guid, reply_to="amq.rabbitmq.reply-to", user_id=self._user, application_headers=headers,
        )  # fmt: skip
        self.channel.basic_publish_confirm(message, "beds.events", key, mandatory=True)
        return guid

    def reply(self, guid: str) -> Any:
        deadline = time.monotonic() + 30
        while guid not in self._replies:
            self._connection.drain_events(timeout=max(0.1, deadline - time.monotonic()))
        return self._replies.pop(guid)

    def ask(self, key: str, task: str, arguments: Any, **more: Any) -> Any:
        return self.reply(self.publish(key, task, arguments, **more))


@pytest.fixture
def peer(settings: Settings, workers: None) -> Iterator[Peer]:
    found = Peer(settings.amqp.client_url)
    yield found
    found.close()


@pytest.mark.parametrize(("store", "template"), [("rec", "SampleDocs"), ("rel", "SampleRows")])
def test_every_operation(peer: Peer, store: str, template: str) -> None:
    name = f"w{uuid7()}"
    moment = {"$datetime": "2013-07-01T12:00:00+00:00"}
    payload = {"id": name, "text": "über", "moment": moment, "price": {"$decimal": "1.5000"}}
    created = peer.ask(f"{store}.write", f"{store}.create_record", {"template": template, "payload": payload})
    assert created["status"] == "SUCCESS", created
    assert created["result"]["kind"] == "response"
    assert created["result"]["record_id"] == name
    fetch = {"template": template, "using": "by_id", "args": {"id": name}, "limit": None, "cursor": ""}
    (record,) = peer.ask(f"{store}.read", f"{store}.fetch_records", fetch)["result"]["records"]
    assert record["text"] == "über"
    assert record["moment"] == moment
    assert record["price"] == {"$decimal": "1.5000"}
    changes = {"template": template, "payload": {"id": name, "text": "changed"}}
    assert peer.ask(f"{store}.write", f"{store}.update_record", changes)["result"]["affected"] == 1
    many = {"template": template, "payloads": [{"id": f"{name}-{n}"} for n in range(3)]}
    assert peer.ask(f"{store}.write", f"{store}.create_records", many)["result"]["affected"] == 3
    for key in (name, *(f"{name}-{n}" for n in range(3))):
        gone = peer.ask(f"{store}.write", f"{store}.delete_record", {"template": template, "record_id": key})
        assert gone["result"]["affected"] == 1
    assert peer.ask(f"{store}.read", f"{store}.fetch_records", fetch)["result"]["records"] == []


def test_an_error_is_told_in_the_same_words(peer: Peer) -> None:
    failed = peer.ask(
        "rel.write", "rel.create_record", {"template": "SampleRows", "payload": {"id": "x", "whole": "y"}}
    )
    assert failed["status"] == "FAILURE"
    assert failed["result"]["beds"]["code"] == "wrong_type"
    assert failed["result"]["beds"]["detail"]["field"] == "whole"
    malformed = peer.ask("rel.write", "rel.no_such_verb", {})
    assert malformed["result"]["beds"]["code"] == "malformed_event"


def test_an_event_published_twice_happens_once(peer: Peer) -> None:
    name = f"w{uuid7()}"
    arguments = {"template": "SampleRows", "payload": {"id": name}}
    guid = peer.publish("rel.write", "rel.create_record", arguments)
    first = peer.reply(guid)
    again = peer.reply(peer.publish("rel.write", "rel.create_record", arguments, guid=guid))
    assert first["result"] == again["result"]
    peer.ask("rel.write", "rel.delete_record", {"template": "SampleRows", "record_id": name})


def test_a_ticket(peer: Peer) -> None:
    guid = uuid7()
    accepted = {"guid": guid, "event_id": f"elsewhere.test.{guid}", "summary": "a fetch", "queue": "rec.read"}
    assert peer.ask("calgon", "calgon.accept", {"tickets": [accepted]})["status"] == "SUCCESS"
    fetch = {"template": "SampleDocs", "using": "by_id", "args": {"id": "none"}, "limit": None, "cursor": ""}
    peer.publish("rec.read", "rec.fetch_records", fetch, ticket=True, guid=guid)
    wait_for(lambda: peer.ask("calgon", "calgon.status", {"guid": guid})["result"]["state"] == "SUCCESS", 30, "its end")


def test_log_records(peer: Peer, settings: Settings) -> None:
    event = f"elsewhere.test.{uuid7()}"
    record = {
        "event_id": f"elsewhere.test.{uuid7()}", "parent_id": event, "root_id": event, "depth": 1,
        "at": time.time(), "level": "WARNING", "levelno": 30, "logger": "wire", "message": f"hello {event}", "seq": 1,
    }  # fmt: skip
    common = {"node": "elsewhere", "env": "test", "host": "h", "pid": 1}
    body = [[], {"kind": "log", "common": common, "records": [record]}, EMBED]
    guid = uuid7()
    headers = {"lang": "py", "id": guid, "task": "admin.write_logs", "timelimit": [None, None]}
    message = amqp.Message(
        json.dumps(body), content_type="application/json", content_encoding="utf-8", delivery_mode=2,
        correlation_id=guid, user_id=peer._user, application_headers=headers,
    )  # fmt: skip
    peer.channel.basic_publish_confirm(message, "beds.logs", "log.warning", mandatory=True)
    args = {"parent_id": event}
    fetch = {"template": "msLogs", "using": "by_event", "args": args, "limit": 10, "cursor": ""}

    assert peer.ask("rec.read", "rec.fetch_records", fetch)["result"]["beds"]["code"] == "store_denied"
    assert settings.amqp.operator_url is not None
    operator = Peer(settings.amqp.operator_url.get_secret_value())

    def arrived() -> Any:
        return operator.ask("operator", "operator.fetch", fetch)["result"]["records"]

    (found,) = wait_for(arrived, 30, "the record")
    operator.close()
    assert found["message"] == record["message"]
