"""Reads from secondaries of MongoDB, over the client of a session."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

from pymongo import ReadPreference

from beds.adapters.mongo.errors import translated
from beds.adapters.mongo.session import MongoSession, position_in
from beds.adapters.replicas import ReplicaReader
from beds.adapters.store import IdempotencyRecord, Outcome, Position, Verify, harmless
from beds.config.sections import RecDatabase
from beds.errors import BedsError, StoreUnavailable
from beds.templates.binding import Binding

Address = tuple[str, int | None]


class MongoReplica(MongoSession):
    """A `Replica` over MongoDB. It keeps to one secondary as long as that answers.

    Args:
        primary: the session with the primary, whose client it uses.
    """

    def __init__(self, primary: MongoSession) -> None:
        self._client = primary._client
        self._pin = primary._pin
        self._session = None
        self._database = primary._database.with_options(read_preference=ReadPreference.SECONDARY)
        self._secondary: Address | None = None

    def position(self) -> Position:
        known = self._secondaries()
        if self._secondary not in known:
            if not known:
                raise harmless(StoreUnavailable("MongoDB has no secondary that answers"))
            self._secondary = random.choice(known)
        with self._pinned(), translated():
            return position_in(self._database.command("ping", read_preference=ReadPreference.SECONDARY))

    def execute(
        self,
        binding: Binding,
        values: Mapping[str, Any],
        once: IdempotencyRecord | None = None,
        verify: Verify | None = None,
    ) -> Outcome:
        with self._pinned():
            return super().execute(binding, values, once, verify)

    def close(self) -> None:
        """Does nothing: the client is the other session's."""

    def _secondaries(self) -> list[Address]:
        seen = self._client.topology_description.server_descriptions()
        return [address for address, each in seen.items() if each.server_type_name == "RSSecondary"]

    @contextlib.contextmanager
    def _pinned(self) -> Iterator[None]:
        """Keep to the secondary, and leave it after an error."""
        self._pin.address = self._secondary
        try:
            yield
        except BedsError:
            self._secondary = None
            raise
        finally:
            self._pin.address = None


def replica_reader(primary: MongoSession, config: RecDatabase, timeout: float) -> ReplicaReader | None:
    """Reads from secondaries, if `read_preference` says so. `timeout` is the session's."""
    if config.read_preference == "primary":
        return None
    return ReplicaReader(primary, MongoReplica(primary), config.read)
