"""One process's connection to a replica of MariaDB, over which it calls objects that only read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beds.adapters.mariadb.hosts import connect_to_any
from beds.adapters.mariadb.session import MariaDBSession, connect, gtid_position
from beds.adapters.replicas import ReplicaReader
from beds.adapters.store import (
    DefinitionChanged,
    IdempotencyRecord,
    ObjectStore,
    Outcome,
    Position,
    Verify,
    harmless,
)
from beds.config.sections import RelDatabase
from beds.errors import StoreUnavailable
from beds.templates.binding import Binding


class MariaDBReplica(MariaDBSession):
    """A `Replica` over MariaDB, one of `[databases.rel.read] hosts`."""

    _may_open = False

    def position(self) -> Position:
        self._may_open = True
        try:
            with self._transaction() as cursor:
                cursor.execute("SELECT @@global.gtid_slave_pos")
                return gtid_position(cursor.fetchall()[0][0])
        finally:
            self._may_open = False

    def execute(
        self,
        binding: Binding,
        values: Mapping[str, Any],
        once: IdempotencyRecord | None = None,
        verify: Verify | None = None,
    ) -> Outcome:
        if self._writes(binding):
            raise DefinitionChanged
        return super().execute(binding, values, once, verify)

    def _open(self) -> Any:
        if not self._may_open:  # another replica may lag more
            raise harmless(StoreUnavailable("the connection to the replica was lost"))
        return connect(self._config, self._timeout, multi_statements=True, to=connect_to_any)


def replica_reader(primary: ObjectStore, config: RelDatabase, timeout: float) -> ReplicaReader | None:
    """Reads from the hosts of `[databases.rel.read]`; None if there are none.

    Args:
        primary: the session with the primary.
        config: with the replicas.
        timeout: of the socket, in seconds.
    """
    if config.read is None:
        return None
    there = config.model_copy(update={"hosts": config.read.hosts, "read": None})
    return ReplicaReader(primary, MariaDBReplica(there, timeout), config.read)
