"""Checks of the members of each cluster: which are away, and which RabbitMQ node leads which queues."""

from __future__ import annotations

from collections.abc import Iterator

from beds.config import Settings
from beds.config.hosts import each_host
from beds.domain.member import Member, Members
from beds.node.check import Check, ok, skipped, warned
from beds.transport.members import rabbitmq_hosts, rabbitmq_nodes

LEADS_TOO_MUCH = 2 / 3
"""The part of the queues that one node of several may lead."""


def store_members(found: Members) -> Iterator[Check]:
    """The members of a store, if it has several, and the lag of the replica that reads go to."""
    server, whole = found.server, len(found.members)
    if whole > 1:
        name = f"{server} members"
        if found.away:
            yield warned(name, f"{whole - len(found.away)} of {whole} answer; not {', '.join(found.away)}",
                         "start them: the next failure may leave no majority, or no candidate")  # fmt: skip
        else:
            primary = f", and {found.writable[0]} takes writes" if len(found.writable) == 1 else ""
            yield ok(name, f"all {whole} answer{primary}")
        if len(found.writable) > 1:
            yield warned(f"{server} writes", f"several servers take writes: {', '.join(found.writable)}",
                         "make all but the primary read-only at once: their data diverge")  # fmt: skip
    if lag := found.lag:
        name = f"{server} replica"
        if lag.problem:
            yield warned(name, f"{lag.problem}; reads go to the primary", "start it, or remove it from beds.toml")
        elif lag.seconds is not None:
            yield ok(name, f"has all writes after {lag.seconds:.2f} s")
        else:
            yield warned(name, f"lags more than {lag.waited:g} s; reads go to the primary beyond {lag.bound:g} s",
                         "see that it replicates, with GTIDs, and that it is not overloaded")  # fmt: skip


def rabbitmq_members(settings: Settings) -> Iterator[Check]:
    """The hosts of `[amqp]`; and, with `[flower] broker_api`, the nodes, partitions and leaders of the cluster."""
    url = settings.amqp.client_url
    if len(each_host(url)) > 1:
        hosts = rabbitmq_hosts(settings, url)
        name, whole = "RabbitMQ hosts", len(hosts.members)
        if hosts.away:
            yield warned(
                name,
                f"{whole - len(hosts.away)} of {whole} answer; not {', '.join(hosts.away)}",
                "start them, or mend [amqp] url",
            )
        else:
            yield ok(name, f"all {whole} answer")
    nodes = rabbitmq_nodes(settings)
    if not settings.flower.broker_api.get_secret_value():
        if len(each_host(url)) > 1:
            yield skipped("RabbitMQ cluster", nodes.problem)
    elif nodes.problem:
        yield warned("RabbitMQ cluster", nodes.problem, "mend [flower] broker_api")
    elif len(nodes.members) > 1:
        yield from _cluster(nodes)


def _cluster(nodes: Members) -> Iterator[Check]:
    cut_off = [node.address for node in nodes.members if node.is_cut_off]
    if nodes.away or cut_off:
        found = "; ".join(
            words + ", ".join(names) for words, names in (("down: ", nodes.away), ("partitioned: ", cut_off)) if names
        )
        yield warned("RabbitMQ cluster", found, "start the node, or restart the partitioned one")
    else:
        yield ok("RabbitMQ cluster", f"{len(nodes.members)} nodes, none of them cut off")
    queues = nodes.queues
    if short := nodes.short_queues:
        yield warned("quorum queues", f"{len(short)} of {queues} lack a member, such as {short[0]}",
                     "`rabbitmq-queues quorum_status QUEUE` shows which")  # fmt: skip
    if not queues:
        return
    spread = sorted(nodes.members, key=_leads, reverse=True)
    if _leads(spread[0]) > max(LEADS_TOO_MUCH * queues, 1):
        yield warned("queue leaders", f"{spread[0].address} leads {_leads(spread[0])} of {queues} queues",
                     "`rabbitmq-queues rebalance quorum` spreads them")  # fmt: skip
    else:
        yield ok("queue leaders", ", ".join(f"{node.address}: {_leads(node)}" for node in spread))


def _leads(node: Member) -> int:
    return node.leads or 0
