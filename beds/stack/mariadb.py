"""MariaDB: creates, starts and checks the local server."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from pathlib import Path

import MySQLdb
import psutil

from beds.errors import StackError
from beds.stack.plan import DATABASE
from beds.stack.server import Server


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

    def _root(self) -> MySQLdb.Connection:
        return MySQLdb.connect(unix_socket=str(self._socket), user=_login(), connect_timeout=2)


def _login() -> str:
    return psutil.Process().username()
