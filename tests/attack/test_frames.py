"""Frames of every kind that RabbitMQ accepts: none ends a process, and each is stored in msDead.

`FRAMES=100000 pytest tests/attack/test_frames.py` sends as many; a run of all tests sends fewer.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import amqp
import pytest

from beds.domain.identity import uuid7
from tests.attack.conftest import Attacker, Node
from tests.conftest import wait_for

FRAMES = int(os.environ.get("FRAMES", "3000"))
IN_FLIGHT = 200
KEYS = ("rec.write", "rel.read", "calgon", "rel.write")
TASKS = (b"rel.create_record", b"calgon.status", b"rec.fetch_records", b"os.system", b"\xff\xfe")


class RawMessage(amqp.Message):  # type: ignore[misc]
    """A message with raw bytes as its properties."""

    def __init__(self, body: bytes, properties: bytes) -> None:
        super().__init__(body)
        self._raw = properties

    def _serialize_properties(self) -> bytes:
        return self._raw


def short(text: bytes) -> bytes:
    return bytes([len(text[:255])]) + text[:255]


def long(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def table(items: list[tuple[bytes, bytes]]) -> bytes:
    return long(b"".join(short(name) + value for name, value in items))


def anything(rng: random.Random, depth: int = 0) -> bytes:
    """A value of any type that RabbitMQ reads in a table; `s` is two bytes to it, and a short text to others."""
    kind = rng.choice(b"tbBsuIilfdDSxATFV") if depth < 4 else rng.choice(b"tbIlfSTV")
    match chr(kind):
        case "t" | "b" | "B":
            inside = rng.randbytes(1)
        case "s" | "u":
            inside = rng.randbytes(2)
        case "I" | "i" | "f":
            inside = rng.randbytes(4)
        case "l" | "d":
            inside = rng.randbytes(8)
        case "T":
            inside = struct.pack(">Q", rng.choice([0, 2**31, 253402300800, 2**62, 2**63, 2**64 - 1]))
        case "D":
            inside = bytes([rng.randrange(256)]) + rng.randbytes(4)
        case "S" | "x":
            inside = long(rng.randbytes(rng.choice([0, 1, 30, 3000])))
        case "A":
            inside = long(b"".join(anything(rng, depth + 1) for _ in range(rng.randrange(4))))
        case "F":
            inside = table(
                [(rng.randbytes(rng.randrange(9)), anything(rng, depth + 1)) for _ in range(rng.randrange(4))]
            )
        case _:
            inside = b""
    return bytes([kind]) + inside


def nested(levels: int) -> bytes:
    value = b"V"
    for _ in range(levels):
        value = b"F" + table([(b"x", value)])
    return value


def headers(rng: random.Random) -> bytes:
    guid = str(uuid7()).encode()
    items = [(b"task", b"S" + long(rng.choice(TASKS))), (b"id", b"S" + long(guid)), (b"lang", b"S" + long(b"py"))]
    # Not x-death: one of a wrong type crashes the queue process of RabbitMQ 3.10 (docs/howto/secure.md).
    names = (
        b"beds",
        b"eta",
        b"expires",
        b"retries",
        b"timelimit",
        b"stamps",
        b"\xff",
        b"x-a",
        b"traceparent",
    )
    items += [(rng.choice(names), anything(rng)) for _ in range(rng.randrange(6))]
    if rng.random() < 0.02:
        items.append((b"x-deep", nested(rng.choice([20, 200, 900]))))
    if rng.random() < 0.02:
        items.append((b"x-big", b"S" + long(b"y" * 60_000)))
    rng.shuffle(items)
    return table(items)


def properties(rng: random.Random, user: bytes) -> bytes:
    """A content header: any subset of properties; texts may be invalid UTF-8."""

    def text(usual: bytes) -> bytes:
        return short(
            rng.choice([usual, usual, b"", b"\xff\xfe\x00", b"\xed\xa0\x80", rng.randbytes(rng.randrange(255))])
        )

    parts: list[tuple[int, Callable[[], bytes]]] = [
        (0x8000, lambda: text(b"application/json")),
        (0x4000, lambda: text(b"utf-8")),
        (0x2000, lambda: headers(rng)),
        (0x1000, lambda: bytes([rng.choice([1, 2])])),
        (0x0800, lambda: rng.randbytes(1)),
        (0x0400, lambda: text(b"x")),
        (0x0200, lambda: text(b"job.aggregate")),
        (0x0080, lambda: text(b"m")),
        (0x0040, lambda: struct.pack(">Q", rng.choice([0, 2**40, 2**63, 2**64 - 1]))),
        (0x0020, lambda: text(b"t")),
        (0x0010, lambda: short(user)),
        (0x0008, lambda: text(b"a")),
    ]
    chosen = [(flag, make) for flag, make in parts if rng.random() < 0.7]
    return struct.pack(">H", sum(flag for flag, _ in chosen)) + b"".join(make() for _, make in chosen)


def bodies(rng: random.Random) -> bytes:
    found: bytes = rng.choice(
        [b"", b"{}", b"[[], {}, {}]", b"\x80\x04K\x05.", rng.randbytes(50), b"[" * 2000, b"null", b"[[],5,{}]"]
    )
    return found


@pytest.mark.timeout(3600)
def test_7_no_frame_ends_a_process_and_each_is_accounted_for(node: Node) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    attacker = Attacker(node.stack, "default")
    before = _when_still(node)
    counts: Counter[str] = Counter()
    sent = 0
    try:
        while sent < FRAMES:
            confirmed = _burst(attacker, rng, min(IN_FLIGHT, FRAMES - sent), counts)
            sent += confirmed
        # RabbitMQ may have accepted or lost the frames in flight when it closed the connection.
        expected, in_doubt = counts["taken"], counts["in doubt"]

        def buried() -> int:
            return _count(node) - before

        last, still = -1, time.monotonic()
        while buried() < expected:  # as long as the number grows
            if (now := buried()) != last:
                last, still = now, time.monotonic()
            assert time.monotonic() - still < 120, f"seed {seed}: {last} of {expected} were buried"
            time.sleep(0.5)
        assert expected <= _when_still(node) - before <= expected + in_doubt, f"seed {seed}: {dict(counts)}"
    finally:
        attacker.close()
    worked = len(node.worked)
    wait_for(lambda: len(node.worked) > worked, 120, "the honest client goes on")
    print(f"frames: {dict(counts)}, seed {seed}")


def _count(node: Node) -> int:
    found: int = node.database.msDead.count_documents({})
    return found


def _when_still(node: Node) -> int:
    """The number of dead events, once it no longer grows."""
    count, since = _count(node), time.monotonic()
    while time.monotonic() - since < 5:
        time.sleep(0.5)
        if (now := _count(node)) != count:
            count, since = now, time.monotonic()
    return count


def _burst(attacker: Attacker, rng: random.Random, many: int, counts: Counter[str]) -> int:
    """Send some frames and wait until RabbitMQ has them; one that it refuses closes the connection."""
    user = attacker.user.encode()
    outstanding: set[int] = set()
    done: Counter[str] = Counter()

    def on_ack(tag: int, multiple: bool) -> None:
        gone = {t for t in outstanding if t <= tag} if multiple else {tag}
        done["taken"] += len(gone & outstanding)
        outstanding.difference_update(gone)

    channel: Any = attacker._connection.channel()
    channel.confirm_select()
    channel.events["basic_ack"].add(on_ack)
    try:
        for number in range(1, many + 1):
            outstanding.add(number)
            channel.basic_publish(RawMessage(bodies(rng), properties(rng, user)), "beds.events", rng.choice(KEYS))
        while outstanding:
            attacker._connection.drain_events(timeout=60)
        channel.close()
    except (amqp.AMQPError, OSError) as error:
        done["refused by RabbitMQ"] += 1
        done["in doubt"] += len(outstanding)
        counts["errors " + type(error).__name__] += 1
        attacker.close()
        attacker._connect()
    counts.update(done)
    return max(1, done["taken"])
