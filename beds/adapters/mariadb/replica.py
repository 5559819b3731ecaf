"""One process's connection to a replica of MariaDB, over which it calls objects that only read."""

from __future__ import annotations

import select
from collections.abc import Mapping
from typing import Any

from MySQLdb.constants import ER

from beds.adapters.mariadb.hosts import REPLICAS, connect_to_any, is_on
from beds.adapters.mariadb.session import MariaDBSession, connect, gtid_position
from beds.adapters.replicas import ReplicaReader
from beds.adapters.store import DefinitionChanged, Outcome, Position, harmless
from beds.config.sections import RelDatabase
from beds.errors import StoreUnavailable
from beds.templates.binding import Binding

LOOK_SECONDS = 1.0
"""A replica has this time to report its position."""


class _Session(MariaDBSession):
    """A session with a replica. Only a look at its position opens a connection, since another one may lag more."""

    def __init__(self, config: RelDatabase, timeout: float, writers: set[tuple[str, str]]) -> None:
        super().__init__(config, timeout)
        self._writers = writers
        self._may_open = False
        self.server = ""

    def look(self) -> Position:
        """The position; a replica that is frozen, or that takes writes now, is left."""
        self._may_open = True
        try:
            with self._transaction():
                connection = self._connection
                connection.send_query(b"SELECT @@global.read_only, @@global.gtid_slave_pos")
                answer = select.poll()
                answer.register(connection.fileno(), select.POLLIN)
                # The socket's own timeout is that of a whole read.
                if not answer.poll(LOOK_SECONDS * 1000):
                    self.close()
                    raise harmless(StoreUnavailable(f"the replica {self.server} does not answer"))
                connection.read_query_result()
                ((read_only, position),) = connection.store_result().fetch_row(1)
                if not is_on(read_only):
                    self.close()
                    raise harmless(StoreUnavailable(f"{self.server} takes writes, so it is no replica"))
                return gtid_position(position)
        finally:
            self._may_open = False

    def call(self, binding: Binding, values: Mapping[str, Any]) -> Outcome:
        if self._writes(binding):
            raise DefinitionChanged
        try:
            return self.execute(binding, values)
        except StoreUnavailable as error:
            if error.detail.get("store_code") == ER.OPTION_PREVENTS_STATEMENT:  # it tried to write
                self._writers.add((binding.target.name, binding.target.stamp))
                raise DefinitionChanged from None  # the primary calls it
            raise

    def _open(self) -> Any:
        if not self._may_open:
            raise harmless(StoreUnavailable("the connection to the replica was lost"))

        def to(config: RelDatabase, connect_to: Any) -> Any:
            self.server, found = connect_to_any(config, connect_to)
            return found

        try:
            return connect(self._config, self._timeout, multi_statements=True, to=to)
        except StoreUnavailable:
            raise harmless(StoreUnavailable(f"no replica answers at {self._config.where}")) from None


class MariaDBReplica:
    """A `Replica` over MariaDB: one of `[databases.rel.read] hosts`.

    Args:
        config: with the replicas as its hosts.
        timeout: of the socket, in seconds.
        writers: the objects that are known to write, which are never called here.
    """

    def __init__(self, config: RelDatabase, timeout: float, writers: set[tuple[str, str]]) -> None:
        self._session = _Session(config, timeout, writers)

    @property
    def server(self) -> str:
        return self._session.server

    def position(self) -> Position:
        return self._session.look()

    def execute(self, binding: Binding, values: Mapping[str, Any]) -> Outcome:
        return self._session.call(binding, values)

    def leave(self) -> None:
        REPLICAS.avoid(self._session.server)
        self._session.close()

    def close(self) -> None:
        self._session.close()


def replica_reader(primary: MariaDBSession, config: RelDatabase, timeout: float) -> ReplicaReader | None:
    """Reads from the hosts of `[databases.rel.read]`; None if there are none.

    Args:
        primary: the session with the primary.
        config: with the replicas.
        timeout: of the socket, in seconds.
    """
    if config.read is None:
        return None
    there = config.model_copy(update={"hosts": config.read.hosts, "read": None})
    return ReplicaReader(primary, MariaDBReplica(there, timeout, primary.writers), config.read)
