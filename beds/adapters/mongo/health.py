"""The start-up checks of MongoDB: its clock, its transactions, and the surplus privileges of this user."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database

from beds.adapters.store import Health
from beds.domain.member import Member

SEEN_SECONDS = 1.0
"""Time for the driver to find all members."""
BROKERS = frozenset({"find", "insert", "update", "remove"})
"""A broker's actions on the application's collections."""
READ_ONLY = frozenset({"find"})
ADD_ONLY = frozenset({"find", "insert"})
"""A broker's actions on audit and ledger. Brokers never change an entry, and MongoDB itself deletes expired ones."""
ADDED_TO = frozenset({"msAudit", "msLedger"})


def rights_on(collection: str) -> list[str]:
    """A broker's actions on a collection."""
    return sorted(ADD_ONLY if collection in ADDED_TO else BROKERS)


def examine(database: Database[dict[str, Any]], objects: str) -> Health:
    """Read MongoDB's state over an open database. `objects` is the collection of stored commands."""
    hello = database.command("hello")
    # Without showPrivileges=True the reply lacks the roles' privileges. A user may always read its own.
    status = database.command("connectionStatus", showPrivileges=True)
    privileges = status["authInfo"]["authenticatedUserPrivileges"]
    views = {entry["name"] for entry in database[objects].find({"kind": "view"}, {"name": "$_id", "_id": 0})}
    read_only = views | {objects}
    clock = hello["localTime"]
    return Health(
        clock if clock.tzinfo else clock.replace(tzinfo=UTC),
        transactions="setName" in hello or hello.get("msg") == "isdbgrid",
        surplus=tuple(surplus(privileges, database.name, read_only)),
        read_only=not hello.get("isWritablePrimary", hello.get("ismaster", True)),
        members=tuple(_members(database.client)),
    )


def _members(client: MongoClient[dict[str, Any]]) -> Iterator[Member]:
    """The members of the replica set, as the driver's monitors see them; each gets a moment to be seen first."""
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        seen = client.topology_description.server_descriptions()
        unseen = [each for each in seen.values() if each.server_type_name == "Unknown"]
        if not unseen or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for (host, port), each in sorted(seen.items()):
        yield Member(f"{host}:{port}", each.server_type_name != "Unknown", each.server_type_name == "RSPrimary")


def surplus(privileges: Iterable[Mapping[str, Any]], database: str, read_only: set[str]) -> list[str]:
    """The privileges that a broker does not need.

    Args:
        privileges: as `connectionStatus` lists them.
        database: the application's.
        read_only: collections and views that brokers may only read.
    """
    found = []
    for privilege in privileges:
        resource, actions = privilege["resource"], set(privilege["actions"])
        collection = resource.get("collection")
        if resource.get("db") != database or not collection:
            needed: frozenset[str] = frozenset()
        else:
            needed = READ_ONLY if collection in read_only else frozenset(rights_on(collection))
        if more := sorted(actions - needed):
            shown = ", ".join(more[:6]) + (f" and {len(more) - 6} more" if len(more) > 6 else "")
            found.append(f"{shown} on {_name_of(resource)}")
    return found


def _name_of(resource: Mapping[str, Any]) -> str:
    if "db" not in resource:
        return "the whole cluster"
    return f"{resource['db'] or 'every database'}.{resource.get('collection') or '*'}"
