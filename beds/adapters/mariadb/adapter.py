"""NamasteCore over MariaDB."""

from __future__ import annotations

from beds.adapters.bound import BoundAdapter


class MariaDBAdapter(BoundAdapter):
    """Calls procedures, functions and views, each call in a transaction of its own."""
