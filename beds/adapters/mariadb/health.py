"""The start-up checks of MariaDB: its clock, and this user's rights beyond calling named objects."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from beds.adapters.mariadb.hosts import is_on
from beds.adapters.store import Health

VIEWS = "SELECT TABLE_SCHEMA AS schema_name, TABLE_NAME AS name FROM information_schema.VIEWS"
_GRANT = re.compile(
    r"GRANT (?P<rights>.+) ON (?P<kind>PROCEDURE |FUNCTION )?(?P<target>(?:`[^`]*`|[^\s`])+) TO .*?(?P<more>WITH .*)?$"
)


def examine(cursor: Any) -> Health:
    """Read MariaDB's state over an open cursor."""
    cursor.execute("SELECT UNIX_TIMESTAMP(UTC_TIMESTAMP(6)) AS now, @@global.read_only AS read_only")
    row = cursor.fetchone()
    clock, read_only = datetime.fromtimestamp(float(row["now"]), UTC), is_on(row["read_only"])
    cursor.execute(VIEWS)
    views = {f"`{row['schema_name']}`.`{row['name']}`" for row in cursor.fetchall()}
    cursor.execute("SHOW GRANTS")
    grants = [str(next(iter(row.values()))) for row in cursor.fetchall()]
    return Health(clock, transactions=True, surplus=tuple(surplus(grants, views)), read_only=read_only)


def granted(cursor: Any) -> set[str]:
    """This user's rights to call and read, in GRANT's words: EXECUTE ON PROCEDURE `beds`.`flights_create`."""
    cursor.execute("SHOW GRANTS")
    found = [_GRANT.match(str(next(iter(row.values())))) for row in cursor.fetchall()]
    return {
        f"{parts['rights']} ON {parts['kind'] or ''}{parts['target']}"
        for parts in found
        if parts and parts["rights"] in ("EXECUTE", "SELECT")
    }


def surplus(grants: Iterable[str], views: set[str]) -> list[str]:
    """The rights that a broker does not need, as MariaDB's `SHOW GRANTS` words them.

    A broker needs EXECUTE on single procedures and functions, and SELECT on single views. Password hashes are left out.
    """
    found = []
    for grant in grants:
        said = re.sub(r" IDENTIFIED BY PASSWORD '[^']*'", "", grant)
        parts = _GRANT.match(said)
        if parts is None:  # a role, for example
            found.append(said)
            continue
        rights, target = parts["rights"], parts["target"]
        needed = (
            rights == "USAGE"
            or (rights == "EXECUTE" and parts["kind"])
            or (rights == "SELECT" and not parts["kind"] and target in views)
        )
        if not needed or "GRANT OPTION" in (parts["more"] or ""):
            found.append(f"{rights} ON {parts['kind'] or ''}{target}" + (" with grant option" if parts["more"] else ""))
    return found
