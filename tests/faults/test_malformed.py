"""Malformed messages: each gets a typed error or goes to beds.dead, and no worker ends."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from pathlib import Path
from typing import Any

import amqp
import kombu
import pytest

from beds.client.client import Client
from beds.errors import BedsError
from tests.conftest import OwnVhost, running_worker, wait_for, wait_until_served

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
ANSWERED: list[tuple[Any, str]] = [
    ([[], {"template": 5}, EMBED], "malformed_event"),
    ([[], {}, EMBED], "malformed_event"),
    ([[], {"$uuid": "01a20d9f-cec8-76f3-8b35-c900cdc2ad61"}, EMBED], "malformed_event"),
    ([[], {"template": "SampleRows", "payload": {"$nonsense": 1}}, EMBED], "malformed_event"),
    ([[], {"template": "SampleRows", "payload": {"$pairs": 5}}, EMBED], "malformed_event"),
    ([[], {"template": "SampleRows", "payload": {"id": "x"}, "surplus": 1}, EMBED], "malformed_event"),
    ([[], {"template": "SampleDocs", "payload": {"id": "x"}}, EMBED], "malformed_event"),
    ([[], {"template": "Nothing", "payload": {}}, EMBED], "unknown_template"),
    ([[], {"template": "SampleRows"}, EMBED], "wrong_type"),
    ([[], {"template": "SampleRows", "payload": {"id": 5}}, EMBED], "wrong_type"),
    ([[], {"a": {"__type__": "nonsense", "__value__": 1}}, {}], "malformed_event"),  # kombu's mark of a type
]
EMBEDS: list[Any] = [{"reply_to": [1]}, {"id": "x"}, {"beds": {}}, {"hostname": "x"}, {"callbacks": {"a": 1}}]
MARKER = "a-value-that-no-log-shows"
DEAD: list[bytes] = [
    json.dumps([[], {"template": "\ud800", "payload": {"id": "x"}}, EMBED]).encode(),
    json.dumps([[], {"template": "SampleRows", "payload": {"id": "x", "text": "\ud800"}}, EMBED]).encode(),
    json.dumps([[], {"template": "SampleRows", "payload": {"id": "x", "ratio": float("nan")}}, EMBED]).encode(),
    json.dumps([["SampleRows"], {"template": "SampleRows", "payload": {"id": "x"}}, EMBED]).encode(),
    b"not json",
    b"\xff\xfe",
    b"",
    b"[" * 5000 + b"]" * 5000,
    *((b"[[]," + b'{"template":' * depth + b"1" + b"}" * depth + b",{}]") for depth in (250, 300, 600, 900)),
    json.dumps([[], {"template": "SampleRows", "payload": {"id": "x"}, "self": 1}, EMBED]).encode(),
    b"5",
    b'"text"',
    b"{}",
    b"[]",
    b"[[],{}]",
    json.dumps([[], {"template": MARKER}, {}, {}]).encode(),
    b'[[],"kwargs",{}]',
    b"[null,null,null]",
    json.dumps([[], {"template": "SampleRows"}, {"chain": [{"task": "x"}]}]).encode(),
    *(json.dumps([[], {"template": "SampleRows", "payload": {"id": "x"}}, embed]).encode() for embed in EMBEDS),
    json.dumps([[], {"template": "SampleRows", "payload": {"id": "x", "text": "x" * 1_100_000}}, EMBED]).encode(),
]
NEXT = {
    "task": "rel.create_record", "args": [], "options": {}, "immutable": True,
    "kwargs": {"template": "SampleRows", "payload": {"id": "called back"}},
}  # fmt: skip
ODD: list[dict[str, Any]] = [
    {"timelimit": "soon"}, {"timelimit": [1]}, {"timelimit": [-1, None]}, {"id": 5}, {"expires": "never"},
    {"expires": 5}, {"eta": "never"}, {"task": "os.system"}, {"task": 5}, {"task": ["x"]}, {"task": None},
    {"task": "celery.starmap"}, {"task": "rec.create_record"}, {"task": "rel.fetch_records"},
    {"stamps": 5}, {"stamped_headers": ["x"]}, {"retries": "many"}, {"beds": 5},
    {"eta": "2999-01-01T00:00:00+00:00"}, {"eta": "0001-01-01T00:00:00+23:00"}, {"timelimit": [1e308, 1e308]},
    {"ignore_result": True}, {"compression": "application/x-gzip"}, {"compression": "zlib"}, {"shadow": "x"},
    *({name: [NEXT]} for name in ("callbacks", "errbacks", "chain", "chord")), {"callbacks": {"a": 1}}, {"group": "x"},
    {"replaced_task_nesting": 3}, {"hostname": "x"}, {"delivery_info": {"a": 1}}, {"properties": {"a": 1}},
    {"beds": {"ticket": True, "event_id": "x"}}, {"beds": {"ticket": True}}, {"beds": {"ticket": "yes"}},
    {"id": "x"}, {"id": "a" * 300}, {"id": f"x]\n{MARKER}"}, {"id": str(uuid.uuid4())},
]  # fmt: skip
"""Invalid headers; `rel.fetch_records` is an operation, but belongs to another queue."""


def publish(channel: Any, body: bytes, reply_to: str = "", **headers: Any) -> str:
    guid = str(uuid.uuid4())
    message = amqp.Message(
        body,
        content_type="application/json",
        content_encoding="utf-8",
        correlation_id=guid,
        reply_to=reply_to,
        user_id="beds_app",
        application_headers={"lang": "py", "task": "rel.create_record", "id": guid, **headers},
    )
    channel.basic_publish(message, "beds.events", "rel.write")
    return guid


@pytest.mark.timeout(180)
def test_no_message_ends_the_worker_and_each_is_answered(project: Path, own_vhost: OwnVhost) -> None:
    url = own_vhost.settings.amqp.client_url
    with (
        running_worker(project, "rel.read,rel.write", "-c", "1", env=own_vhost.env) as worker,
        Client(own_vhost.settings) as client,
        kombu.Connection(url) as connection,
    ):
        wait_until_served(client, ["SampleRows"])
        channel = connection.default_channel
        mine = "amq.rabbitmq.reply-to"
        before = channel.queue_declare("beds.dead", passive=True).message_count  # messages that are already dead
        replies: list[Any] = []
        channel.basic_consume(mine, no_ack=True, callback=replies.append)
        asked = {publish(channel, json.dumps(body).encode(), mine): code for body, code in ANSWERED}
        dead = [publish(channel, body, mine) for body in DEAD]
        good = json.dumps([[], {"template": "SampleRows", "payload": {"id": "x", "text": MARKER}}, EMBED]).encode()
        dead += [publish(channel, good, mine, **headers) for headers in ODD]
        dead.append(publish(channel, b"[1]", mine, beds={"ticket": True, "event_id": "x"}))
        asked |= dict.fromkeys(dead, "malformed_event")
        answered: dict[str, str] = {}
        deadline = time.monotonic() + 60
        while len(answered) < len(asked) and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=1)
            while replies:
                reply = replies.pop()
                result = json.loads(reply.body)["result"]
                assert "beds" in result, (result, reply.properties)
                answered[reply.properties["correlation_id"]] = result["beds"]["code"]
        assert answered == asked

        wait_for(
            lambda: channel.queue_declare("beds.dead", passive=True).message_count == before + len(dead),
            30,
            "the dead letters",
        )
        assert worker.poll() is None
        client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=30)
        for unwanted in ("x", "called back"):
            assert not client.call("fetch_records", "SampleRows", {"id": unwanted}, using="by_id", timeout=30)
        late = publish(channel, good, mine, expires="2020-01-01T00:00:00+00:00")
        connection.drain_events(timeout=30)
        (reply,) = replies
        assert reply.properties["correlation_id"] == late
        assert json.loads(reply.body)["result"]["beds"]["code"] == "call_timeout"
        # No value of a caller is logged: not for a refused, a failed or a successful event.
        for payload in ({"id": MARKER[:12], "text": MARKER}, {"id": MARKER[:12]}):
            with contextlib.suppress(BedsError):
                client.call("create_record", "SampleRows", payload, timeout=30)
        with contextlib.suppress(BedsError):
            client.call("delete_record", "SampleRows", f"{MARKER[:12]}-0", timeout=30)
        publish(channel, json.dumps([[], {"template": MARKER}, EMBED]).encode())
        client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=30)
    log = (project / "worker.log").read_text()
    assert MARKER not in log
    assert MARKER[:12] not in log
