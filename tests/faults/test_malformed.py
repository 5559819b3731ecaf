"""Messages that no client of ours would send: a typed error or beds.dead, and the worker lives on."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import amqp
import kombu
import pytest

from beds.client import Client
from tests.conftest import OwnVhost, running_worker, wait_for, wait_until_served

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
ANSWERED: list[tuple[Any, str]] = [
    ([[], {"template": 5}, EMBED], "malformed_event"),
    ([[], {}, EMBED], "malformed_event"),
    ([["positional"], {"template": "SampleRows"}, EMBED], "malformed_event"),
    ([[], {"template": "SampleRows", "payload": {"$nonsense": 1}}, EMBED], "malformed_event"),
    ([[], {"template": "SampleRows", "payload": {"$pairs": 5}}, EMBED], "malformed_event"),
    ([[], {"template": "SampleRows", "payload": {"id": "x"}, "surplus": 1}, EMBED], "malformed_event"),
    ([[], {"template": "SampleDocs", "payload": {"id": "x"}}, EMBED], "malformed_event"),
    ([[], {"template": "Nothing", "payload": {}}, EMBED], "unknown_template"),
    ([[], {"template": "SampleRows"}, EMBED], "wrong_type"),
    ([[], {"template": "SampleRows", "payload": {"id": 5}}, EMBED], "wrong_type"),
]
DEAD: list[bytes] = [
    b"not json",
    b"\xff\xfe",
    b"",
    b"[" * 5000 + b"]" * 5000,
    b'[[],{"a":{"__type__":"nonsense","__value__":1}},{}]',
    b"5",
    b'"text"',
    b"{}",
    b"[]",
    b"[[],{}]",
    b"[[],{},{},{}]",
    b'[[],"kwargs",{}]',
    b"[null,null,null]",
    json.dumps([[], {"template": "SampleRows"}, {"chain": [{"task": "x"}]}]).encode(),
]


def publish(channel: Any, body: bytes, reply_to: str = "", **headers: Any) -> str:
    guid = str(uuid.uuid4())
    message = amqp.Message(
        body,
        content_type="application/json",
        content_encoding="utf-8",
        correlation_id=guid,
        reply_to=reply_to,
        application_headers={"lang": "py", "task": "rel.create_record", "id": guid, **headers},
    )
    channel.basic_publish(message, "beds.events", "rel.write")
    return guid


@pytest.mark.timeout(180)
def test_no_message_ends_the_worker(project: Path, own_vhost: OwnVhost) -> None:
    url = own_vhost.settings.amqp.broker_url
    with (
        running_worker(project, "rel.read,rel.write", "-c", "1", env=own_vhost.env) as worker,
        Client(own_vhost.settings) as client,
        kombu.Connection(url) as connection,
    ):
        wait_until_served(client, ["SampleRows"])
        channel = connection.default_channel
        mine = channel.queue_declare("", exclusive=True).queue
        asked = {publish(channel, json.dumps(body).encode(), mine): code for body, code in ANSWERED}
        answered: dict[str, str] = {}
        deadline = time.monotonic() + 60
        while len(answered) < len(asked) and time.monotonic() < deadline:
            reply = channel.basic_get(mine, no_ack=True)
            if reply is None:
                time.sleep(0.1)
                continue
            answered[reply.properties["correlation_id"]] = json.loads(reply.body)["result"]["beds"]["code"]
        assert answered == asked

        for body in DEAD:
            publish(channel, body)
        body = json.dumps([[], {"template": "SampleRows", "payload": {"id": "x"}}, EMBED]).encode()
        odd: list[dict[str, Any]] = [
            {"timelimit": "soon"}, {"timelimit": [1]}, {"timelimit": [-1, None]}, {"id": 5}, {"expires": "never"},
            {"eta": "never"}, {"task": "os.system"},
        ]  # fmt: skip
        for headers in odd:
            publish(channel, body, **headers)
        wait_for(
            lambda: channel.queue_declare("beds.dead", passive=True).message_count == len(odd) + len(DEAD),
            30,
            "the dead letters",
        )
        assert worker.poll() is None
        client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=30)
        assert not client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=30)
