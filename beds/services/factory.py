"""The factory: makes the adapter for a template's name, at run time."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from beds.adapters.bulk import BulkAdapter
from beds.adapters.replicas import ReplicaReader
from beds.adapters.store import Health, ObjectStore
from beds.config import Settings
from beds.domain.event import Store
from beds.errors import ConfigurationError
from beds.templates.registry import TemplateRegistry

# Names instead of imports: a node loads a store's driver only when it serves the store; a client never loads one.
_STORES: Mapping[Store, tuple[str, str]] = {
    Store.REC: ("beds.adapters.mongo", "Mongo"),
    Store.REL: ("beds.adapters.mariadb", "MariaDB"),
}


class AdapterFactory:
    """Makes adapters, one per template and thread, over one session per store and thread.

    Sessions open at the first use, in the process that uses them: neither driver survives a fork, and mysqlclient
    allows no concurrent use of a connection.

    Args:
        settings, registry: the databases, and the templates.
        timeout: socket timeout in seconds. A worker sets it just after its soft limit: nothing can interrupt a driver
            that waits in C, and the hard limit would kill the whole process.
    """

    def __init__(self, settings: Settings, registry: TemplateRegistry, timeout: float | None = None) -> None:
        self.registry = registry
        self._timeout = timeout
        self._settings = settings
        self._local = threading.local()

    def adapter(self, template_name: str) -> BulkAdapter:
        """The adapter of a template.

        Raises:
            UnknownTemplate: no such template.
            ConfigurationError: beds.toml has no `[databases.…]` for its store, or the driver is not installed.
        """
        template = self.registry[template_name]
        adapters = self._mine().adapters
        if template.name not in adapters:
            package, prefix = _STORES[template.store]
            adapter_class = getattr(_load(f"{package}.adapter", template.store), f"{prefix}Adapter")
            adapters[template.name] = adapter_class(
                template,
                self._session(template.store),
                self._settings.retry,
                self._settings.schema_.refresh,
                self._settings.ledger.ttl,
                self._reads(template.store),
            )
        return adapters[template.name]  # type: ignore[no-any-return]

    def examine(self, store: Store) -> Health:
        """The state of a store's database, for a check.

        Raises:
            ConfigurationError: as `adapter`.
            StoreUnavailable: it cannot be reached, or refuses the user.
        """
        found = self._session(store).examine()
        reader = self._reads(store)
        return replace(found, lag=reader.lag()) if reader is not None else found

    def takes_writes(self, store: Store) -> bool:
        """False if the server of a store is read-only. Raises as `examine`."""
        return self._session(store).takes_writes()

    def close(self) -> None:
        mine = self._mine()
        for session in (*mine.readers.values(), *mine.sessions.values()):
            if session is not None:
                session.close()
        self._local = threading.local()

    def _mine(self) -> Any:
        mine = self._local
        if getattr(mine, "pid", None) != os.getpid():
            # Keep the parent's sessions, unused: their destructors would send a quit on the parent's sockets.
            mine.inherited = getattr(mine, "sessions", None), getattr(mine, "readers", None)
            mine.pid, mine.sessions, mine.readers, mine.adapters = os.getpid(), {}, {}, {}
        return mine

    def _session(self, store: Store) -> ObjectStore:
        sessions: dict[Store, ObjectStore] = self._mine().sessions
        if store not in sessions:
            config = getattr(self._settings.databases, store)
            if config is None:
                raise ConfigurationError(
                    f"this node has no database for the {store} store", hint=f"add [databases.{store}] to beds.toml"
                )
            package, prefix = _STORES[store]
            sessions[store] = getattr(_load(f"{package}.session", store), f"{prefix}Session")(
                config, self._socket_timeout(store)
            )
        return sessions[store]

    def _reads(self, store: Store) -> ReplicaReader | None:
        """What reads from the replicas of a store; None if beds.toml names none."""
        readers: dict[Store, ReplicaReader | None] = self._mine().readers
        if store not in readers:
            package, _ = _STORES[store]
            make = _load(f"{package}.replica", store).replica_reader
            config = getattr(self._settings.databases, store)
            readers[store] = make(self._session(store), config, self._socket_timeout(store))
        return readers[store]

    def _socket_timeout(self, store: Store) -> float:
        widest = max(self._settings.broker(f"{store}.{side}").soft_limit for side in ("read", "write"))
        return self._timeout or widest


def _load(module: str, store: Store) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the {store} store needs {error.name}, which is not installed", hint="pip install 'beds[broker]'"
        ) from None
