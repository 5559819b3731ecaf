"""The members of a cluster: several servers that hold the same data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Member:
    """One server of several that hold the same data.

    Args:
        address: its host and port, or its name.
        is_up: whether it answers.
        takes_writes: whether it is a primary.
        leads: the number of queues that it leads; None where there are none, or it is not known.
        is_cut_off: whether it does not see the other members.
    """

    address: str
    is_up: bool
    takes_writes: bool = False
    leads: int | None = None
    is_cut_off: bool = False


@dataclass(frozen=True, slots=True)
class Lag:
    """The lag of a replica that reads may go to.

    Args:
        bound: `max_lag`, in seconds. Beyond it reads go to the primary.
        seconds: how long it took to reach the primary's position; None if longer than `waited`.
        waited: seconds.
        problem: why it is not known.
    """

    bound: float
    seconds: float | None
    waited: float
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Members:
    """The members of one server, as a node sees them.

    Args:
        server: `RabbitMQ`, `MongoDB` or `MariaDB`.
        members: each of them.
        queues: the number of quorum queues.
        short_queues: those that lack a member.
        lag: of the replica that reads go to, if there is one.
        problem: why the members are not known.
    """

    server: str
    members: tuple[Member, ...] = ()
    queues: int = 0
    short_queues: tuple[str, ...] = ()
    lag: Lag | None = None
    problem: str = ""

    @property
    def away(self) -> list[str]:
        return [member.address for member in self.members if not member.is_up]

    @property
    def writable(self) -> list[str]:
        """Those that take writes."""
        return [member.address for member in self.members if member.takes_writes]

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The members that a worker reported."""
        lag = wire.get("lag")
        return cls(
            str(wire["server"]),
            tuple(Member(**each) for each in wire["members"]),
            int(wire["queues"]),
            tuple(wire["short_queues"]),
            Lag(**lag) if lag else None,
            str(wire["problem"]),
        )
