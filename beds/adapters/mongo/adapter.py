"""NamasteCore over MongoDB."""

from __future__ import annotations

from beds.adapters.bound import BoundAdapter


class MongoAdapter(BoundAdapter):
    """Calls stored commands. A record's key travels as `_id`."""
