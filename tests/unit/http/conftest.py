"""An application over memory, and callers: one may do everything, one little, one is bound to a value."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from beds.config.http import Http
from beds.http.application import Application
from beds.testing import MemoryClient
from tests.conftest import ROOT

ALL, NARROW, BOUND, OPS = "key-of-all", "key-of-narrow", "key-of-bound", "key-of-ops"


def key(name: str, secret: str, *roles: str, **claims: Any) -> dict[str, Any]:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return {"name": name, "sha256": [digest], "roles": list(roles), "claims": claims}


ROLES: dict[str, Any] = {
    "everything": {"allow": ["*"], "rate": 100_000, "burst": 100_000},
    "narrow": {"allow": ["Airlines:by_carrier", "Notices:create"]},
    "bound": {"allow": ["Airlines:*", "Notices:*"], "bind": {"carrier": "claim:carrier"}},
    "ops": {"allow": ["msAudit:read"]},
}
KEYS = [
    key("all", ALL, "everything"),
    key("narrow", NARROW, "narrow"),
    key("bound", BOUND, "bound", carrier="AA"),
    key("ops", OPS, "ops"),
]


def http_settings(**more: Any) -> Http:
    return Http.model_validate({"roles": ROLES, "key": KEYS, **more})


def application(**more: Any) -> Application:
    client = MemoryClient(ROOT / "schema")
    client.settings = client.settings.model_copy(update={"http": http_settings(**more)})
    return Application(client.settings, client)


@pytest.fixture
def app() -> Application:
    return application()


@pytest.fixture
def web(app: Application) -> Iterator[TestClient]:
    """A caller that may do everything."""
    with TestClient(app, headers={"Authorization": f"Bearer {ALL}"}) as client:
        yield client


def as_caller(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}
