"""The peer `eve` of bench.http: python-eve over the collection of notices, with gunicorn's threads.

It runs in an environment of its own, without BEDS: `python -m bench.http_eve PORT PROCESSES`, with the address of
MongoDB and its callers' token in the environment.
"""

from __future__ import annotations

import hmac
import os
import sys
from typing import Any, ClassVar
from uuid import UUID

from eve import Eve
from eve.auth import TokenAuth
from eve.io.base import BaseJSONEncoder
from eve.io.mongo import Mongo, Validator
from gunicorn.app.base import BaseApplication
from werkzeug.routing import BaseConverter

THREADS = 16
TOKEN = os.environ.get("BENCH_TOKEN", "")
NOTICE = {
    "_id": {"type": "uuid"},
    "airport": {"type": "string", "maxlength": 3, "required": True},
    "title": {"type": "string", "maxlength": 200, "required": True},
    "status": {"type": "string", "allowed": ["open", "closed"], "required": True},
    "severity": {"type": "integer", "min": 1, "max": 5, "nullable": True},
    "tags": {"type": "list", "nullable": True},
    "details": {"type": "dict", "nullable": True, "allow_unknown": True},
    "opened": {"type": "datetime", "nullable": True},
    "revision": {"type": "integer", "default": 0},
}


class UuidConverter(BaseConverter):
    regex = "[0-9a-f-]{36}"

    def to_python(self, value: str) -> UUID:
        return UUID(value)

    def to_url(self, value: Any) -> str:
        return str(value)


class UuidEncoder(BaseJSONEncoder):
    def default(self, obj: Any) -> Any:
        return str(obj) if isinstance(obj, UUID) else super().default(obj)


class UuidValidator(Validator):
    def _validate_type_uuid(self, value: Any) -> bool:
        return isinstance(value, UUID)


class Store(Mongo):
    serializers: ClassVar[dict[str, Any]] = {**Mongo.serializers, "uuid": UUID}


class Bearer(TokenAuth):
    def check_auth(self, token: str, allowed_roles: Any, resource: str, method: str) -> bool:
        return hmac.compare_digest(token.encode(), TOKEN.encode())


def application() -> Eve:
    settings = {
        "MONGO_URI": os.environ["BENCH_REC_URI"],
        "MONGO_DBNAME": os.environ["BENCH_REC_DATABASE"],
        "MONGO_OPTIONS": {"uuidRepresentation": "standard", "tz_aware": True},
        "RESOURCE_METHODS": ["GET", "POST"],
        "ITEM_METHODS": ["GET"],
        "HATEOAS": False,
        "RENDERERS": ["eve.render.JSONRenderer"],
        "DATE_FORMAT": "%Y-%m-%dT%H:%M:%S%z",
        "DOMAIN": {"notices": {"schema": NOTICE, "item_url": "uuid", "item_lookup": True}},
    }
    app = Eve(settings=settings, auth=Bearer, validator=UuidValidator, json_encoder=UuidEncoder,
              data=Store, url_converters={"uuid": UuidConverter})  # fmt: skip
    app.logger.setLevel("ERROR")
    return app


class Server(BaseApplication):
    def __init__(self, port: int, processes: int) -> None:
        self._options = {
            "bind": f"127.0.0.1:{port}",
            "workers": processes,
            "threads": THREADS,
            "worker_class": "gthread",
            "keepalive": 75,
            "worker_connections": 2000,
            "loglevel": "warning",
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Eve:
        return application()


if __name__ == "__main__":
    Server(*map(int, sys.argv[1:])).run()
