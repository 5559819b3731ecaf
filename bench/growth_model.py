"""Predicts how many events a second a BEDS system carries, from what one event costs each of its parts.

The rate is the lowest of the limits of the parts. It is an upper bound: events that wait for each other by chance, and
the pauses of a scheduler, cost some percent more near a limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """What may limit the rate of a system."""

    SLOTS = "slots"
    NODES = "CPU of the BEDS nodes"
    CLIENTS = "CPU of the clients"
    RABBITMQ = "CPU of RabbitMQ"
    LEADER = "one queue's leader"
    RECORDS = "the admin node"
    DATABASE = "CPU of the database"
    NETWORK = "network of RabbitMQ"
    MACHINE = "CPU of the one machine"


@dataclass(frozen=True)
class Costs:
    """What one event costs.

    Args:
        client, node, rabbitmq, records, database: CPU seconds of the client, of the BEDS node that executes it, of all
            RabbitMQ nodes together, of the admin worker that stores its records, and of the database.
        leader: CPU seconds of the busiest process in RabbitMQ, which can use one core; a part of `rabbitmq`.
        service: seconds for which the event occupies a slot, without its wait in the database.
        wire: bytes to and from all RabbitMQ nodes together, and between them.
    """

    client: float
    node: float
    rabbitmq: float
    records: float
    database: float
    leader: float
    service: float
    wire: float

    @property
    def cpu(self) -> float:
        """CPU seconds of all parts together."""
        return self.client + self.node + self.rabbitmq + self.records + self.database


@dataclass(frozen=True)
class System:
    """A system to predict.

    Args:
        nodes: BEDS nodes that serve the queue.
        slots: of each node, for this queue.
        wait: seconds for which an event waits in the database without using a CPU, such as for a lock or a disk.
        cores: of each machine.
        clients: client processes; each can use one core.
        rabbitmq: RabbitMQ machines, over which leaders and connections are spread.
        bandwidth: bytes a second, in and out together, of one RabbitMQ machine.
        is_shared: whether all parts run on one machine with `cores` cores.
    """

    nodes: int
    slots: int
    wait: float = 0.0
    cores: float = 8.0
    clients: int = 1
    rabbitmq: int = 1
    bandwidth: float = 2 * 125e6
    is_shared: bool = False


@dataclass(frozen=True)
class Prediction:
    """The rate of a system, in events a second, and the part that limits it."""

    rate: float
    part: Part


def limits(costs: Costs, system: System) -> dict[Part, float]:
    """Events a second that each part can carry."""
    found = {
        Part.SLOTS: _rate(system.nodes * system.slots, system.wait + costs.service),
        Part.CLIENTS: _rate(system.clients, costs.client),
        Part.LEADER: _rate(1, costs.leader),
        Part.RECORDS: _rate(1, costs.records),
    }
    if system.is_shared:
        return {**found, Part.MACHINE: _rate(system.cores, costs.cpu)}
    return {
        **found,
        Part.NODES: _rate(system.nodes * system.cores, costs.node),
        Part.RABBITMQ: _rate(system.rabbitmq * system.cores, costs.rabbitmq),
        Part.DATABASE: _rate(system.cores, costs.database),
        Part.NETWORK: _rate(system.rabbitmq * system.bandwidth, costs.wire),
    }


def predict(costs: Costs, system: System) -> Prediction:
    """The lowest limit."""
    found = limits(costs, system)
    part = min(found, key=lambda each: found[each])
    return Prediction(found[part], part)


def needed(costs: Costs, system: System) -> dict[Part, int]:
    """How many times each part that does not grow with the BEDS nodes is needed, so that the nodes are the limit.

    Parts that suffice are left out.
    """
    found = limits(costs, system)
    goal = min(found[part] for part in (Part.SLOTS, Part.NODES) if part in found)
    times = {part: math.ceil(goal / rate) for part, rate in found.items() if part not in (Part.SLOTS, Part.NODES)}
    return {part: count for part, count in times.items() if count > 1}


def _rate(capacity: float, cost: float) -> float:
    return capacity / cost if cost > 0 else math.inf
