"""The further members of a local cluster: RabbitMQ nodes, members of MongoDB's replica set, a replica of MariaDB."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from beds.errors import StackError
from beds.node.daemon import accepts
from beds.stack.mariadb import MariaDB
from beds.stack.mongodb import MongoDB
from beds.stack.plan import Plan
from beds.stack.rabbitmq import RabbitMQ
from beds.stack.server import START_SECONDS

CATCH_UP_SECONDS = 60
"""For a replica to apply what it has received."""


class RabbitMQMember(RabbitMQ):
    """A node that joins the first one. Both share its epmd.

    Args:
        plan: its ports and folder.
        first: the node to join.
    """

    def __init__(self, plan: Plan, first: RabbitMQ) -> None:
        super().__init__(plan)
        self._first = first
        self.epmd = first.epmd

    def make(self) -> None:
        super().make()
        super().provision()  # its users come from the cluster
        cookie = self.folder / ".erlang.cookie"
        cookie.touch(mode=0o600)
        cookie.write_text((self._first.folder / cookie.name).read_text())
        cookie.chmod(0o400)

    def is_ready(self) -> bool:
        return super().is_ready() if self._made.exists() else accepts(self.plan.amqp_port)

    def provision(self) -> None:
        """Join, and give every queue that exists a copy here."""
        self.control("stop_app")
        self.control("join_cluster", self._first.node_name)
        self.control("start_app")
        self.control("await_startup")
        self._first.queues_tool("grow", self.node_name, "all")

    def down(self) -> bool:
        return self.daemon.stop()  # the first node ends epmd


class MongoDBMember(MongoDB):
    """A member that adds itself to the set of the first one.

    Args:
        plan: its port and folder.
        first: a member of the set, whose key it shares.
    """

    def __init__(self, plan: Plan, first: MongoDB) -> None:
        super().__init__(plan)
        self._first = first

    def make(self) -> None:
        super().make()
        (self.folder / "keyfile").write_text((self._first.folder / "keyfile").read_text())

    def provision(self) -> None:
        """Join. The set copies data and users to it."""
        self.daemon.wait_until(self._has_joined, START_SECONDS)
        self.daemon.wait_until(self._is_secondary, START_SECONDS)

    def _has_joined(self) -> bool:
        """Add this member to the set. False if it has to be tried again: the set may change by itself meanwhile."""
        host = f"127.0.0.1:{self.plan.mongodb_port}"
        uri = self._first.plan.alone.mongo_uri("root", "admin")
        with (
            contextlib.suppress(PyMongoError),
            MongoClient[dict[str, object]](uri, serverSelectionTimeoutMS=10_000) as root,
        ):
            config = root.admin.command("replSetGetConfig")["config"]
            if all(member["host"] != host for member in config["members"]):
                config["version"] += 1
                config["members"].append({"_id": max(each["_id"] for each in config["members"]) + 1, "host": host})
                root.admin.command("replSetReconfig", config)
            return True
        return False

    def _is_secondary(self) -> bool:
        with contextlib.suppress(PyMongoError), self._client() as client:
            return bool(client.admin.command("hello").get("secondary"))
        return False


class MariaDBReplica(MariaDB):
    """A server that begins as a copy of the primary, and then follows it.

    Args:
        plan: its port and folder.
        first: the server to copy.
    """

    def __init__(self, plan: Plan, first: MariaDB) -> None:
        super().__init__(plan)
        self._first = first

    def make(self) -> None:
        """Copy the data of the other server, which is stopped meanwhile."""
        self._first.down()
        try:
            shutil.copytree(self._first.folder / "data", self.folder / "data")
        finally:
            self._first.up()

    def provision(self) -> None:
        """Go on where the copied server was. The copy has all users."""
        self.ask("SET GLOBAL gtid_slave_pos = @@global.gtid_binlog_pos")


def assign_roles(servers: Sequence[MariaDB]) -> MariaDB:
    """Let one MariaDB take writes, and the others follow it. Returns the primary.

    The last primary stays it, even if another server follows none: a former primary may have writes that no replica
    has, and whose callers got no answer.
    """
    free = [each for each in servers if not each.follows()]
    unnoted = free[0] if len(free) == 1 else servers[0]  # of a cluster that an earlier version started
    primary = next((each for each in servers if each.is_noted_primary), unnoted)
    primary.take_writes()
    for each in servers:
        if each is not primary and not each.follows():
            each.follow(primary)
    return primary


def promote(servers: Sequence[MariaDB]) -> MariaDB:
    """Make a replica the primary, after it has applied all writes that it can get. Returns the new primary.

    Raises:
        StackError: no replica runs, or it does not catch up.
    """
    running = [each for each in servers if each.daemon.process()]
    replica = next((each for each in running if each.follows()), None)
    if replica is None:
        raise StackError("no replica of MariaDB runs", hint="`beds stack up --cluster` starts one")
    primary = next((each for each in running if each is not replica), None)
    has_begun = False
    try:
        if primary is not None:
            primary.refuse_writes()
            replica.catch_up(primary, CATCH_UP_SECONDS)
        else:
            replica.apply_received(CATCH_UP_SECONDS)
        has_begun = True
        replica.take_writes()
    except BaseException:
        if primary is not None and not has_begun:
            with contextlib.suppress(StackError):  # the first error counts
                primary.take_writes()
        raise
    if primary is not None:
        primary.follow(replica)
    return replica
