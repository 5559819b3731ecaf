"""Finds the server that takes writes among the hosts of `[databases.rel]`."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from typing import Any

import MySQLdb

from beds.config.sections import RelDatabase
from beds.errors import BedsError

FIRST_TRY_SECONDS = 1.0
"""The longest attempt at one host while others were not tried; the driver counts whole seconds."""
AVOID_SECONDS = 15.0
"""A host that failed, or refused writes, is tried last for this time."""

Open = Callable[[str, int, float], Any]
"""Opens a connection to a host and port, within some seconds."""


class HostOrder:
    """The order in which hosts are tried: at random, those that were avoided lately last."""

    def __init__(self) -> None:
        self._avoided_at: dict[str, float] = {}

    def avoid(self, host: str) -> None:
        """Try a host, `host:port`, last for some time."""
        self._avoided_at[host] = time.monotonic()

    def of(self, hosts: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """The hosts in the order in which to try them."""
        shuffled = random.sample(hosts, len(hosts))
        soon = time.monotonic() - AVOID_SECONDS
        return sorted(shuffled, key=lambda each: max(self._avoided_at.get(f"{each[0]}:{each[1]}", 0.0), soon))


PRIMARIES, REPLICAS = HostOrder(), HostOrder()
"""For each role its own: a host that takes writes is avoided only by readers of replicas."""


def connect_to_primary(config: RelDatabase, connect: Open) -> Any:
    """A connection to the first host that takes writes. If none does, to one that is read-only: reads go on meanwhile.

    Args:
        config: with its hosts.
        connect: opens a connection to one of them.

    Raises:
        StoreUnavailable, StoreDenied: no host can be reached, or none takes the user.
    """
    hosts = config.addresses
    if len(hosts) == 1:
        return connect(*hosts[0], config.connect_timeout)
    deadline = time.monotonic() + config.connect_timeout
    readable: Any = None
    failure: BedsError | None = None
    for number, (host, port) in enumerate(PRIMARIES.of(hosts)):
        left = max(deadline - time.monotonic(), FIRST_TRY_SECONDS)
        try:
            found = connect(host, port, min(FIRST_TRY_SECONDS, left) if number < len(hosts) - 1 else left)
        except BedsError as error:  # also of a candidate that does not know the user yet
            failure = error
            PRIMARIES.avoid(f"{host}:{port}")
            continue
        if not is_read_only(found):
            if readable is not None:
                _close(readable)
            return found
        PRIMARIES.avoid(f"{host}:{port}")
        if readable is not None:
            _close(found)
        else:
            readable = found
    if readable is not None:
        return readable
    assert failure is not None
    raise failure


def connect_to_any(config: RelDatabase, connect: Open) -> tuple[str, Any]:
    """The first host that answers, as `host:port`, and a connection to it.

    Args:
        config: with its hosts.
        connect: opens a connection to one of them.

    Raises:
        StoreUnavailable, StoreDenied: no host can be reached, or none takes the user.
    """
    failure: BedsError | None = None
    hosts = REPLICAS.of(config.addresses)
    for number, (host, port) in enumerate(hosts):
        seconds = FIRST_TRY_SECONDS if number < len(hosts) - 1 else config.connect_timeout
        try:
            return f"{host}:{port}", connect(host, port, min(seconds, config.connect_timeout))
        except BedsError as error:
            failure = error
            REPLICAS.avoid(f"{host}:{port}")
    assert failure is not None
    raise failure


def is_read_only(connection: Any) -> bool:
    """Whether the server refuses writes, as a replica does. True if the connection fails."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@global.read_only AS it")
            (row,) = cursor.fetchall()
    except MySQLdb.Error:
        return True
    return is_on(row["it"])


def is_on(value: Any) -> bool:
    """A variable's value as true or false: a number, or a word in later versions of MariaDB."""
    text = value.decode() if isinstance(value, bytes) else str(value)
    return text.upper() not in ("0", "OFF")


def _close(connection: Any) -> None:
    with contextlib.suppress(MySQLdb.Error):
        connection.close()
