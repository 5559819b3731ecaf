"""The key of an app server without configured callers: made at the first use, for development alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from beds.config.http import OPS, Http, HttpKey, HttpRole
from beds.config.settings import Settings
from beds.errors import ConfigurationError

LOCAL = "local"
"""The name of the key and of its role, which may do everything that clients may. The key also has the role `ops`."""


def key_file(settings: Settings) -> Path:
    """Where the key is kept, readable by this user alone."""
    return settings.root / ".beds" / "http.key"


def local_key(settings: Settings) -> str | None:
    """The key of this node; None if `[http]` names its callers itself, or may not make one.

    The key is made where the node is no production node and listens on loopback.
    """
    http = settings.http
    if not http.is_open_to_nobody or settings.node.is_production or not http.is_on_loopback:
        return None
    file = key_file(settings)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = file.with_name(f"{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
        new.touch(mode=0o600)
        new.write_text(new_key() + "\n")
        with contextlib.suppress(FileExistsError):  # another process was faster: its key counts
            os.link(new, file)
        new.unlink()
    return file.read_text().strip()


def with_local_key(settings: Settings) -> Http:
    """`[http]` with the node's own key, if it has one.

    Raises:
        ConfigurationError: it has no caller.
    """
    http = settings.http
    if (key := local_key(settings)) is None:
        if http.is_open_to_nobody:
            raise ConfigurationError(
                "nobody may call this node: [http] has no key and no jwt",
                hint="`beds http key NAME` makes a key; beds.toml takes its SHA-256",
            )
        return http
    role = HttpRole(allow=("*",), rate=10_000, burst=20_000, concurrency=1000)
    own = HttpKey(name=LOCAL, sha256=(sha256_of(key),), roles=(LOCAL, OPS))
    return http.model_copy(update={"key": (own,), "roles": {OPS: HttpRole(), **http.roles, LOCAL: role}})


def new_key() -> str:
    """A key that cannot be guessed: 256 random bits."""
    return f"beds_{secrets.token_urlsafe(32)}"


def sha256_of(key: str) -> str:
    """What beds.toml has of a key."""
    return hashlib.sha256(key.encode()).hexdigest()
