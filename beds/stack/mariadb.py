"""MariaDB: creates, starts and checks the local server."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import MySQLdb
import MySQLdb.cursors
import psutil

from beds.errors import StackError
from beds.stack.plan import DATABASE
from beds.stack.server import Server

REPLICATOR = "beds_replicator"


class MariaDB(Server):
    """A server with its own data directory. Root can connect only through its socket."""

    name = "mariadb"
    package = "mariadb-server-core (Debian)"

    @property
    def ports(self) -> dict[str, int]:
        return {"MariaDB": self.plan.mariadb_port}

    @property
    def _socket(self) -> Path:
        # A Unix socket's path may have about 100 characters, and that of the stack's folder may be longer.
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
        # In /tmp, each server that starts would delete the temporary tables of the others.
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        self.daemon.start(
            [
                self.program("mariadbd"),
                "--no-defaults",
                f"--datadir={self.folder / 'data'}",
                f"--tmpdir={temporary}",
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
                *(self._replication() if self.plan.is_cluster else ()),
                *self.more,
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
            # `beds schema apply` grants the broker its rights, object by object.
            connection.commit()

    def down(self) -> bool:
        ran = super().down()
        self._socket.unlink(missing_ok=True)
        return ran

    def shell(self, role: str) -> tuple[list[str], dict[str, str]]:
        """The command of the shell as `dba`, `worker` or `root`, and its environment with the password."""
        program = self.program("mariadb", "mysql")
        if role == "root":
            return [program, "--no-defaults", f"--socket={self._socket}", f"--user={_login()}", DATABASE], {}
        user = "broker" if role == "worker" else "dba"
        where = [f"--user=beds_{user}", "--host=127.0.0.1", f"--port={self.plan.mariadb_port}", DATABASE]
        return [program, "--no-defaults", *where], {"MYSQL_PWD": self.plan.passwords[f"rel_{user}"]}

    def follows(self) -> bool:
        """True if it is a replica."""
        return bool(self.ask("SHOW SLAVE STATUS"))

    @property
    def is_noted_primary(self) -> bool:
        """True if it took writes last."""
        return self._primary_note.is_file() and self._primary_note.read_text() == str(self.plan.number)

    @property
    def _primary_note(self) -> Path:
        """Names the primary, for all members."""
        folder = self.plan.folder if self.plan.number == 1 else self.plan.folder.parent
        return folder / "mariadb.primary"

    def take_writes(self) -> None:
        """Become the primary, or stay it."""
        if self.follows():
            self.ask("STOP SLAVE")
            self.ask("RESET SLAVE ALL")
        if not self.ask("SELECT 1 FROM mysql.user WHERE user = %s", [REPLICATOR]):
            password = self.plan.passwords["rel_replicator"]
            self.ask(f"CREATE USER {REPLICATOR}@'127.0.0.1' IDENTIFIED BY %s", [password])
            self.ask(f"GRANT REPLICATION SLAVE ON *.* TO {REPLICATOR}@'127.0.0.1'")
        # First the note: if this ends in between, no server takes writes, and `up` repairs that.
        new = self._primary_note.with_suffix(".new")
        new.write_text(str(self.plan.number))
        new.replace(self._primary_note)
        self.ask("SET GLOBAL read_only = 0")

    def refuse_writes(self) -> None:
        self.ask("SET GLOBAL read_only = 1")

    def follow(self, primary: MariaDB) -> None:
        """Become a replica, which goes on at its own position."""
        self.refuse_writes()
        self.ask(
            "CHANGE MASTER TO master_host = '127.0.0.1', master_port = %s, master_user = %s, master_password = %s, "
            "master_connect_retry = 1, master_use_gtid = slave_pos, master_demote_to_slave = 1",
            [primary.plan.mariadb_port, REPLICATOR, self.plan.passwords["rel_replicator"]],
        )
        self.ask("START SLAVE")

    def catch_up(self, primary: MariaDB, seconds: int) -> None:
        """Wait until it has all writes of a primary that takes no more. Raises StackError."""
        (row,) = primary.ask("SELECT @@global.gtid_binlog_pos AS position")
        (waited,) = self.ask("SELECT MASTER_GTID_WAIT(%s, %s) AS result", [row["position"], seconds])
        if waited["result"] != 0:
            raise StackError(f"the replica does not catch up in {seconds} s", hint=f"see {self.daemon.log}")

    def apply_received(self, seconds: int) -> None:
        """Wait until it has applied all that a lost primary has sent. Raises StackError."""

        def is_done() -> bool:
            (status,) = self.ask("SHOW SLAVE STATUS")
            received = status["Master_Log_File"], status["Read_Master_Log_Pos"]
            return received == (status["Relay_Master_Log_File"], status["Exec_Master_Log_Pos"])

        self.daemon.wait_until(is_done, seconds)

    def _replication(self) -> tuple[str, ...]:
        return (
            f"--server-id={self.plan.number}",
            "--read-only",  # `assign_roles` lets one take writes
            "--log-bin=binlog",
            "--log-bin-trust-function-creators",  # otherwise only SUPER could create the schema's functions
            "--log-slave-updates",
            "--binlog-format=ROW",
            "--gtid-strict-mode",
            "--sync-binlog=1",
            # A commit is answered when the replica has it, so a kill of the primary loses no answered write.
            "--rpl-semi-sync-master-enabled=1",
            "--rpl-semi-sync-slave-enabled=1",
            "--rpl-semi-sync-master-wait-point=AFTER_SYNC",
            "--rpl-semi-sync-master-timeout=600000",
            "--rpl-semi-sync-master-wait-no-slave=OFF",
        )

    def ask(self, statement: str, values: Sequence[object] = ()) -> list[dict[str, Any]]:
        """Run a statement as root and return its rows. Raises StackError."""
        try:
            connection = self._root()
            with contextlib.closing(connection), connection.cursor(MySQLdb.cursors.DictCursor) as cursor:
                cursor.execute(statement, values or None)
                connection.commit()
                return list(cursor.fetchall())
        except MySQLdb.Error as error:
            raise StackError(f"{self.label}: {error.args[-1]}", hint=f"see {self.daemon.log}") from None

    def _root(self) -> MySQLdb.Connection:
        return MySQLdb.connect(unix_socket=str(self._socket), user=_login(), connect_timeout=2)


def _login() -> str:
    return psutil.Process().username()
