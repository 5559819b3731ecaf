"""NamasteCore over MariaDB."""

from __future__ import annotations

from beds.adapters.bound import BoundAdapter
from beds.adapters.mariadb.values import check_json
from beds.core.namaste import Payload


class MariaDBAdapter(BoundAdapter):
    """Calls procedures, functions and views, each call in a transaction of its own."""

    def _check_document(self, payload: Payload, where: str) -> None:
        for name, value in payload.items():
            check_json(name if where == "payload" else f"{where}.{name}", value)
