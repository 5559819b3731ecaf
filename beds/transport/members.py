"""The members of RabbitMQ: the hosts of `[amqp] url`, and the nodes of the cluster by the management API."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections import Counter
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import amqp

from beds.config import Settings
from beds.config.hosts import each_host
from beds.domain.member import Member, Members
from beds.transport.connection import connect_to
from beds.transport.rights import vhost_of

SECONDS = 3.0
"""For each question to a member."""
SERVER = "RabbitMQ"


def rabbitmq_hosts(settings: Settings, url: str) -> Members:
    """The hosts of an address, each asked by itself.

    Args:
        settings: for TLS and the heartbeat.
        url: the address, with its user.
    """
    found = []
    for one in each_host(url):
        connection = connect_to(settings.amqp, one, patience=SECONDS, connect_timeout=SECONDS)
        try:
            connection.establish().collect()
            answers = True
        except (amqp.AccessRefused, amqp.NotAllowed):
            answers = True  # it answers; another check names the user
        except (OSError, amqp.AMQPError):
            answers = False
        found.append(Member(urlsplit(one).netloc.rpartition("@")[2], answers))
    return Members(SERVER, tuple(found))


def rabbitmq_nodes(settings: Settings) -> Members:
    """The nodes of the cluster, as `[flower] broker_api` knows them; `problem` says why it does not."""
    api = settings.flower.broker_api.get_secret_value()
    if not api:
        return Members(SERVER, problem="[flower] broker_api is not set, which lists nodes and leaders")
    vhost = quote(vhost_of(settings.amqp.client_url), safe="")
    try:
        nodes = _ask(api, "nodes")
        queues = _ask(api, f"queues/{vhost}?columns=name,type,leader,node,members,online")
    except (OSError, ValueError, HTTPException) as error:
        return Members(SERVER, problem=f"its management API does not answer: {error}")
    quorum = [queue for queue in queues if queue.get("type") == "quorum"]
    leaders = Counter(queue.get("leader") or queue.get("node") for queue in quorum)
    short = [queue["name"] for queue in quorum if len(queue.get("online", ())) < len(queue.get("members", ()))]
    members = [
        Member(
            node["name"],
            bool(node.get("running")),
            leads=leaders[node["name"]],
            is_cut_off=bool(node.get("partitions")),
        )
        for node in nodes
    ]
    return Members(SERVER, tuple(members), len(quorum), tuple(short))


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
