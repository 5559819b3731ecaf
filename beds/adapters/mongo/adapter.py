"""NamasteCore over MongoDB."""

from __future__ import annotations

from beds.adapters.bulk import BulkAdapter


class MongoAdapter(BulkAdapter):
    """Calls stored commands. MongoDB stores a record's key as `_id`."""
