"""Databases without procedures of BEDS: Sakila, the tables of TPC-C, and three that show what others may hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beds.adapters.mariadb.session import connect
from beds.config import Settings
from beds.config.sections import RelDatabase
from beds.stack.stack import Stack
from tests.adopt import sakila, tpcc

FOLDER = Path(__file__).parent
NAMES = ("sakila", "tpcc", "legacy", "kinds", "hostile")
KINDS = FOLDER.parent / "schema" / "rel" / "V0898__kinds.sql"
"""The tables of the contract's tests, with a column of each type."""
SECONDS = 120.0


@contextmanager
def loaded(name: str, stack: Stack, settings: Settings) -> Iterator[RelDatabase]:
    """The DBA's login to a new database with these objects and rows. It is dropped at the end."""
    dba = settings.schema_.dba.rel
    assert dba is not None
    own = dba.model_copy(update={"database": f"adopt_{name}"})
    stack.mariadb.ask(f"CREATE OR REPLACE DATABASE {own.database}")
    try:
        stack.mariadb.ask(f"GRANT ALL ON {own.database}.* TO {own.user}@'127.0.0.1' WITH GRANT OPTION")
        with contextlib.closing(connect(own, SECONDS, multi_statements=True)) as connection:
            load(name, connection)
        yield own
    finally:
        stack.mariadb.ask(f"DROP DATABASE {own.database}")


def load(name: str, connection: Any) -> None:
    """Create the objects and rows of one of NAMES in the connection's database, which is empty.

    Args:
        connection: the DBA's, with `multi_statements`. It is committed, and should be closed: Sakila leaves it without
            checks of foreign keys.
    """
    file = KINDS if name == "kinds" else FOLDER / f"{name}.sql"
    texts = sakila.statements() if name == "sakila" else [file.read_text()]
    with connection.cursor() as cursor:
        for text in texts:
            cursor.execute(text)
            # An error of a later statement is raised here.
            while cursor.nextset() is not None:
                pass
        if name == "tpcc":
            for table, rows in tpcc.tables():
                cursor.executemany(f"INSERT INTO {table} VALUES ({', '.join(['%s'] * len(rows[0]))})", rows)
    connection.commit()
