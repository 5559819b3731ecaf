"""Three RabbitMQ nodes on loopback, beside the local stack, for benchmarks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from beds.stack.plan import Plan
from beds.stack.rabbitmq import RabbitMQ
from beds.stack.stack import Stack

FIRST_OFFSET, STEP = 900, 40
"""The ports of the first member after the stack's own, and of each further one."""
COOKIE = "BEDSBENCHCLUSTER"


@dataclass(frozen=True)
class MemberPlan(Plan):
    """The plan of one member, which uses the epmd of the stack."""

    epmd: int = 0

    @property
    def epmd_port(self) -> int:
        return self.epmd


class Member(RabbitMQ):
    """One of the nodes.

    Args:
        plan: its ports and its folder.
        stack: whose epmd it uses.
        names: of all members.
    """

    def __init__(self, plan: MemberPlan, stack: Stack, names: list[str]) -> None:
        super().__init__(plan)
        self.epmd = stack.rabbitmq.epmd
        self.more = (
            "cluster_formation.peer_discovery_backend = classic_config",
            *(f"cluster_formation.classic_config.nodes.{n} = {name}" for n, name in enumerate(names, 1)),
        )

    def make(self) -> None:
        super().make()
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(COOKIE)
        cookie.chmod(0o400)

    def down(self) -> bool:
        return self.daemon.stop()


@contextmanager
def running_cluster(stack: Stack, size: int = 3) -> Iterator[list[Member]]:
    """A cluster with BEDS's users and its vhost, without data. It is deleted at the end of the block."""
    folder = stack.folder / "growth"
    plans = [
        MemberPlan(
            folder / f"member{n}",
            stack.plan.base + FIRST_OFFSET + STEP * n,
            stack.plan.passwords,
            epmd=stack.plan.epmd_port,
        )
        for n in range(size)
    ]
    members = [Member(plan, stack, [f"beds{each.amqp_port}@localhost" for each in plans]) for plan in plans]

    def clear() -> None:
        for member in members:
            member.down()
        shutil.rmtree(folder, ignore_errors=True)

    clear()
    try:
        for member in members:
            member.up()
        members[0].control("await_online_nodes", str(size), "-t", "60")
        yield members
    finally:
        clear()
