"""A full disk under MariaDB: a typed error, no partial write, and normal service once there is space."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.client.client import Client
from beds.domain.identity import uuid7
from beds.errors import CallTimeout, StoreUnavailable
from beds.stack.mariadb import MariaDB
from beds.stack.plan import USERS, Plan
from tests.conftest import PORT_BASE, OwnVhost, run, running_worker, wait_for, wait_until_served

MEGABYTES = 320


@pytest.fixture
def small_disk(project: Path, tmp_path: Path) -> Iterator[tuple[Path, dict[str, str], MariaDB]]:
    """A MariaDB of its own on a small file system, with the schema applied, and the variables that name it."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(disk)], check=True)
    plan = Plan(disk, PORT_BASE + 2000, {user: secrets.token_urlsafe(12) for user in USERS})
    server = MariaDB(plan)
    try:
        server.up()
        env = {n: v for n, v in plan.environment().items() if "REL" in n}
        applied = run(project, "beds", "schema", "apply", env=env)
        assert applied.returncode == 0, applied.stderr
        yield disk, env, server
    finally:
        server.down()
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.timeout(240)
def test_a_full_disk_costs_no_event(
    project: Path, own_vhost: OwnVhost, small_disk: tuple[Path, dict[str, str], MariaDB]
) -> None:
    disk, rel, server = small_disk
    env = own_vhost.env | rel
    large = {"text": "x" * 300_000}
    with running_worker(project, "rel.read,rel.write,calgon", env=env), Client(own_vhost.settings) as client:
        wait_until_served(client, ["SampleRows"])
        before = str(uuid7())
        client.call("create_record", "SampleRows", {"id": before, "extra": large}, timeout=30)
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 1_000_000)
        refused: list[str] = []
        kept = [before]
        while not refused:
            assert len(kept) < 200, "the disk does not fill"
            key = str(uuid7())
            try:
                client.call("create_record", "SampleRows", {"id": key, "extra": large}, timeout=60)
                kept.append(key)
            except StoreUnavailable as error:
                assert error.retryable
                refused.append(key)
            except CallTimeout:  # the server was lost during the write, so the write may still be executed
                break
        ballast.unlink()
        # InnoDB reports full tables until it is restarted.
        server.down()
        server.up()
        after = str(uuid7())

        def room() -> bool:
            try:
                client.call("create_record", "SampleRows", {"id": after, "extra": large}, timeout=60)
            except StoreUnavailable:
                return False
            return True

        wait_for(room, 60, "room on the disk")
        for key in kept:
            assert len(client.call("fetch_records", "SampleRows", {"id": key}, using="by_id", timeout=30)) == 1  # type: ignore[arg-type]
        for key in refused:
            assert not client.call("fetch_records", "SampleRows", {"id": key}, using="by_id", timeout=30)
