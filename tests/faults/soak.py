"""A soak: writes for many minutes through one pool of slots, while slots are killed at random.

    python -m tests.faults.soak [--minutes 10] [--events 24000] [--slots 8]

Each write must be answered once and have its effect once. Memory, descriptors and processes must not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field

import psutil

from beds.client.call import Call
from beds.client.client import Client
from beds.config import load_settings
from beds.domain.reply import Response
from beds.stack.stack import Stack
from tests.conftest import (
    PORT_BASE,
    apply_schema,
    make_project,
    running_worker,
    vhost_of_its_own,
    wait_until_served,
)

CALLERS = 4
SAMPLE_SECONDS = 30.0
MB = 1_000_000


@dataclass
class Soak:
    """What happened so far.

    Args:
        parent: the worker's.
        until: monotonic seconds.
        per_second: writes.
    """

    parent: psutil.Process
    until: float
    per_second: float
    keys: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    longest: float = 0.0
    kills: int = 0
    zombies: int = 0

    def call(self, client: Client) -> None:
        """Write at the given rate, shared among the callers."""
        due = time.monotonic()
        while time.monotonic() < self.until:
            key = str(uuid.uuid4())
            begun = time.monotonic()
            reply = client.call_many(
                [Call("create_record", "SampleRows", {"id": key})], timeout=60, return_errors=True
            )[0]
            self.longest = max(self.longest, time.monotonic() - begun)
            self.keys.append(key)
            if not isinstance(reply, Response) or reply.affected != 1:
                self.errors.append(f"{key}: {reply!r}")
            due += CALLERS / self.per_second
            time.sleep(max(0.0, due - time.monotonic()))

    def kill(self) -> None:
        """Kill a slot every few seconds."""
        while time.monotonic() < self.until:
            time.sleep(random.uniform(1.0, 5.0))
            slots = self.parent.children()
            self.zombies = max(self.zombies, sum(_is_zombie(slot) for slot in slots))
            with contextlib.suppress(ProcessLookupError):
                os.kill(random.choice(slots).pid, signal.SIGKILL)
            self.kills += 1

    def sample(self) -> str:
        memory, descriptors = [0.0], [0]
        for slot in self.parent.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it was killed meanwhile
                memory.append(slot.memory_full_info().uss / MB)
                descriptors.append(slot.num_fds())
        return (
            f"{len(self.keys):>7} writes {self.kills:>4} kills | parent {self.parent.memory_info().rss / MB:.0f} MB, "
            f"{self.parent.num_fds()} descriptors | {len(memory) - 1} slots, the largest {max(memory):.0f} MB, "
            f"{max(descriptors)} descriptors"
        )


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--events", type=int, default=24_000)
    parser.add_argument("--slots", type=int, default=8)
    options = parser.parse_args()
    project = make_project()
    stack = Stack(project / ".beds", PORT_BASE)
    stack.up(lambda line: print(line, file=sys.stderr))
    apply_schema(project)
    with (
        vhost_of_its_own(load_settings(project / "beds.toml"), stack) as own,
        running_worker(project, "rel.read,rel.write", "-c", str(options.slots), env=own.env) as worker,
        running_worker(project, "beds.logs,beds.audit,beds.metrics", env=own.env),
        Client(own.settings) as client,
    ):
        wait_until_served(client, ["SampleRows"])
        seconds = options.minutes * 60
        soak = Soak(psutil.Process(worker.pid), time.monotonic() + seconds, options.events / seconds)
        threads = [threading.Thread(target=soak.call, args=(client,)) for _ in range(CALLERS)]
        threads.append(threading.Thread(target=soak.kill))
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            print(soak.sample(), flush=True)
            time.sleep(min(SAMPLE_SECONDS, max(1.0, soak.until - time.monotonic())))
        stored = [len(client.fetch("SampleRows", "by_id", {"id": key}, timeout=60)) for key in soak.keys]
        print(soak.sample())
        print(
            f"{len(soak.keys)} writes, {soak.kills} kills: {stored.count(1)} stored once, {stored.count(0)} lost, "
            f"{len(soak.errors)} errors, longest {soak.longest:.1f} s, at most {soak.zombies} zombies"
        )
        for error in soak.errors[:10]:
            print(error, file=sys.stderr)
        raise SystemExit(bool(soak.errors) or stored.count(1) != len(soak.keys))


if __name__ == "__main__":
    main()
