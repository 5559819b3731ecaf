"""Untrusted text cannot control the terminal: one test over all commands that print it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from beds.client.client import Client
from beds.domain.event import RecordKind
from beds.domain.identity import uuid7
from beds.domain.lineage import Lineage
from beds.errors import NotFound, UnknownField
from beds.transport.shipper import Shipper
from tests.conftest import environment, wait_for

EVIL = "\x1b[31m\x1b]0;gotcha\x07[/x][bold]\x9b2J\r\n"
"""Escape sequences, a title, an unmatched closing markup tag, and a line break."""


def on_a_terminal(project: Path, *command: str) -> str:
    """The output of a command on a terminal."""
    ours, theirs = pty.openpty()
    env = environment(project, TERM="xterm", NO_COLOR="1", COLUMNS="200")
    process = subprocess.Popen(command, cwd=project, env=env, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    said = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                some = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not some:
                break
            said += some
        elif process.poll() is not None:
            break
    process.wait(30)
    os.close(ours)
    return said.decode(errors="replace")


@pytest.fixture
def evil(client: Client, settings: Any) -> str:
    """A record, a ticket, a log record and an actor with a hostile name; returns the ticket's guid."""
    key = f"{uuid7()}"
    ticket = client.submit("create_record", "SampleRows", {"id": key, "text": EVIL}, actor=EVIL)
    ticket.result(30)
    client.call("create_record", "SampleRows", {"id": f"{key[-6:]}{EVIL}", "text": EVIL}, actor=EVIL)
    with pytest.raises(UnknownField):
        client.call("fetch_records", "SampleRows", {"id": "x", EVIL: "x"}, using="by_id")
    shipper = Shipper(settings)
    own = Lineage.root("ms", "test")
    record = {
        "event_id": own.event_id, "parent_id": ticket.event_id, "root_id": ticket.event_id, "depth": 1,
        "at": time.time(), "level": EVIL, "levelno": 30, "logger": EVIL, "message": EVIL,
        "exception": EVIL, "extra": {EVIL: EVIL}, "node": EVIL, "host": EVIL,  # its pid has to be a number
    }  # fmt: skip
    shipper.add(RecordKind.LOG, record, 30)
    shipper.close()
    wait_for(lambda: "log" in _kinds(client, ticket.guid), 60, "the log record")
    return ticket.guid


def _kinds(client: Client, guid: str) -> set[str]:
    try:
        return {node.kind for node in client.lineage(guid).walk()}
    except NotFound:
        return set()


def test_nothing_printed_moves_a_terminal(project: Path, evil: str) -> None:
    commands = [
        ["lineage", evil],
        ["logs", "--limit", "50"],
        ["logs", "--event", evil],
        ["audit", "--template", "SampleRows", "--since", "5m"],
        ["ticket", evil],
        ["tickets", "--state", "SUCCESS"],
        ["dead", "list"],
        ["top", "--once"],
        ["call", "SampleRows.fetch_records", "--using", "by_text", f"text={EVIL}"],
        ["call", "SampleRows.fetch_records", "--using", "by_id", f"{EVIL}=x"],
        ["call", "SampleRows.create_record", f"id={EVIL}", "whole=x"],
        ["dead", "show", EVIL],
        ["ticket", EVIL],
    ]
    for command in commands:
        said = on_a_terminal(project, "beds", *command)
        assert not re.search(r"(?m)^Traceback", said), (command, said)  # one that was logged is indented
        assert "gotcha" in said or command[0] not in ("lineage", "logs"), (command, said)
        assert "gotcha\x07" not in said, command
        assert "\x1b]0;" not in said, command
        assert "\x1b[31m" not in said, command
        assert "\x9b" not in said, command
