"""NamasteCore over MongoDB."""

from __future__ import annotations

from beds.adapters.bound import BoundAdapter
from beds.adapters.mongo.values import document_to_bson
from beds.core.namaste import Payload


class MongoAdapter(BoundAdapter):
    """Calls stored commands. A record's key travels as `_id`."""

    def _check_document(self, payload: Payload, where: str) -> None:
        document_to_bson(
            self.template.fields, dict(payload), self.template.key, "" if where == "payload" else f"{where}."
        )
