"""NamasteCore over MongoDB."""

from __future__ import annotations

from beds.adapters.bound import BoundAdapter


class MongoAdapter(BoundAdapter):
    """Calls stored commands. MongoDB stores a record's key as `_id`."""
