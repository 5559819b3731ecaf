"""NamasteCore over MariaDB."""

from __future__ import annotations

from beds.adapters.bulk import BulkAdapter


class MariaDBAdapter(BulkAdapter):
    """Calls procedures, functions and views, each call in a transaction of its own."""
