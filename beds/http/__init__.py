"""The app-server node: HTTP, REST and WebSocket generated from the templates. It is a client, with a client's rights.

`beds.http.app` is an ASGI application with the settings of beds.toml, to mount in one's own; `beds http` runs it.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "app":
        from beds.http.application import default_app

        return default_app()
    raise AttributeError(f"module 'beds.http' has no attribute {name!r}")
