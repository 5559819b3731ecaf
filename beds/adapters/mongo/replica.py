"""Reads from secondaries of MongoDB, over the client of a session."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from beds.adapters.mongo.session import Address, MongoSession
from beds.adapters.replicas import ReplicaReader
from beds.adapters.store import Outcome, Position, harmless
from beds.config.sections import RecDatabase
from beds.errors import StoreUnavailable
from beds.templates.binding import Binding


class MongoReplica:
    """A `Replica` over MongoDB. It keeps to one secondary as long as that answers.

    Args:
        session: the session with the primary, whose client it uses.
    """

    def __init__(self, session: MongoSession) -> None:
        self._session = session
        self._secondary: Address | None = None

    @property
    def server(self) -> str:
        return "{}:{}".format(*self._secondary) if self._secondary else ""

    def position(self) -> Position:
        known = self._session.secondaries()
        if self._secondary not in known:
            if not known:
                raise _lost()
            self._secondary = random.choice(known)
        return self._session.position_of(self._secondary)

    def execute(self, binding: Binding, values: Mapping[str, Any]) -> Outcome:
        if self._secondary is None or self._secondary not in self._session.secondaries():
            raise _lost()
        return self._session.fetch_from(self._secondary, binding, values)

    def leave(self) -> None:
        self._secondary = None

    def close(self) -> None:
        """Does nothing: the client belongs to the session."""


def _lost() -> StoreUnavailable:
    return harmless(StoreUnavailable("MongoDB has no secondary that answers"))


def replica_reader(primary: MongoSession, config: RecDatabase, timeout: float) -> ReplicaReader | None:
    """Reads from secondaries, if `read_preference` says so. `timeout` is the session's."""
    if config.read_preference == "primary":
        return None
    return ReplicaReader(primary, MongoReplica(primary), config.read)
