"""The members of each cluster: which are away, and which RabbitMQ node leads which queues."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import amqp

from beds.adapters.store import Health
from beds.config import Settings
from beds.config.hosts import each_host
from beds.node.check import Check, ok, skipped, warned
from beds.transport.connection import connect_to
from beds.transport.rights import vhost_of

SECONDS = 3.0
"""For each question to a member."""
LEADS_TOO_MUCH = 2 / 3
"""The part of the queues that one node of several may lead."""


def store_members(server: str, health: Health) -> Iterator[Check]:
    """The members of a store, if it has several."""
    if len(health.members) < 2:
        return
    away = [member.address for member in health.members if not member.is_up]
    name, whole = f"{server} members", len(health.members)
    writing = [member.address for member in health.members if member.takes_writes]
    if away:
        yield warned(name, f"{whole - len(away)} of {whole} answer; not {', '.join(away)}",
                     "start them: the next failure may leave no majority, or no candidate")  # fmt: skip
    else:
        yield ok(name, f"all {whole} answer" + (f", and {writing[0]} takes writes" if len(writing) == 1 else ""))
    if len(writing) > 1:
        yield warned(f"{server} writes", f"several servers take writes: {', '.join(writing)}",
                     "make all but the primary read-only at once: their data diverge")  # fmt: skip


def rabbitmq_members(settings: Settings) -> Iterator[Check]:
    """The hosts of `[amqp]`; and, with `[flower] broker_api`, the nodes, partitions and leaders of the cluster."""
    url = settings.amqp.client_url
    if len(each_host(url)) > 1:
        away = [where for where, is_up in _hosts(settings, url) if not is_up]
        name, whole = "RabbitMQ hosts", len(each_host(url))
        if away:
            yield warned(
                name, f"{whole - len(away)} of {whole} answer; not {', '.join(away)}", "start them, or mend [amqp] url"
            )
        else:
            yield ok(name, f"all {whole} answer")
    api = settings.flower.broker_api.get_secret_value()
    if not api:
        if len(each_host(url)) > 1:
            yield skipped("RabbitMQ cluster", "[flower] broker_api is not set, which lists nodes and leaders")
        return
    try:
        nodes = _ask(api, "nodes")
        queues = _ask(api, f"queues/{quote(vhost_of(url), safe='')}?columns=name,type,leader,node,members,online")
    except (OSError, ValueError, HTTPException) as error:
        yield warned("RabbitMQ cluster", f"its management API does not answer: {error}", "mend [flower] broker_api")
        return
    if len(nodes) > 1:
        yield from _cluster(nodes, queues)


def _cluster(nodes: list[dict[str, Any]], queues: list[dict[str, Any]]) -> Iterator[Check]:
    down = [node["name"] for node in nodes if not node.get("running")]
    split = [node["name"] for node in nodes if node.get("partitions")]
    if down or split:
        found = "; ".join(
            words + ", ".join(names) for words, names in (("down: ", down), ("partitioned: ", split)) if names
        )
        yield warned("RabbitMQ cluster", found, "start the node, or restart the partitioned one")
    else:
        yield ok("RabbitMQ cluster", f"{len(nodes)} nodes, none of them cut off")
    quorum = [queue for queue in queues if queue.get("type") == "quorum"]
    short = [queue["name"] for queue in quorum if len(queue.get("online", ())) < len(queue.get("members", ()))]
    if short:
        yield warned("quorum queues", f"{len(short)} of {len(quorum)} lack a member, such as {short[0]}",
                     "`rabbitmq-queues quorum_status QUEUE` shows which")  # fmt: skip
    leaders = Counter(queue.get("leader") or queue.get("node") for queue in quorum)
    if not leaders:
        return
    first, count = leaders.most_common(1)[0]
    spread = ", ".join(f"{name}: {number}" for name, number in leaders.most_common())
    if count > max(LEADS_TOO_MUCH * len(quorum), 1):
        yield warned("queue leaders", f"{first} leads {count} of {len(quorum)} queues",
                     "`rabbitmq-queues rebalance quorum` spreads them")  # fmt: skip
    else:
        yield ok("queue leaders", spread)


def _hosts(settings: Settings, url: str) -> Iterator[tuple[str, bool]]:
    for one in each_host(url):
        connection = connect_to(settings.amqp, one, patience=SECONDS, connect_timeout=SECONDS)
        where = urlsplit(one).netloc.rpartition("@")[2]
        try:
            connection.establish().collect()
        except (amqp.AccessRefused, amqp.NotAllowed):
            yield where, True  # it answers; another check names the user
        except (OSError, amqp.AMQPError):
            yield where, False
        else:
            yield where, True


def _ask(api: str, path: str) -> Any:
    """The reply of the management API of the first host that answers. Raises OSError, ValueError."""
    failure: OSError | None = None
    for url in each_host(api):
        parts = urlsplit(url)
        bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/") + "/", "", ""))
        user = ":".join(unquote(part or "") for part in (parts.username, parts.password)).encode()
        request = urllib.request.Request(
            bare + path, headers={"Authorization": f"Basic {base64.b64encode(user).decode()}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                return json.load(reply)
        except OSError as error:
            failure = error
    assert failure is not None
    raise failure
