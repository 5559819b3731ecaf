"""`beds schema apply | diff | check`, without the printing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from beds.config import Settings
from beds.errors import ConfigurationError, SchemaMismatch
from beds.schema_tools.change import Change
from beds.schema_tools.rec import BROKER_ROLE, RecSchema
from beds.schema_tools.rel import RelSchema
from beds.services.factory import AdapterFactory
from beds.templates.registry import SYSTEM, TemplateRegistry


@contextlib.contextmanager
def changes(settings: Settings) -> Iterator[list[Change]]:
    """The differences between `schema/` and the databases, in the order of application; call each one's `apply()`.

    Raises:
        ConfigurationError: no DBA credentials.
        SchemaError, SchemaDrift: a file is wrong or was changed after it was applied.
    """
    found: list[Change] = []
    with _sides(settings) as (rel, rec):
        if rel is not None:
            found += rel.changes()
        if rec is not None:
            found += rec.changes()
        yield found


@dataclass(frozen=True)
class Grants:
    """The least rights that the brokers need: SQL statements, and the privileges of MongoDB's role."""

    rel: list[str]
    rec: list[dict[str, Any]]
    role: str = BROKER_ROLE


def grants(settings: Settings) -> Grants:
    """The brokers' rights, as `beds schema apply` gives them.

    Raises:
        ConfigurationError: no DBA credentials.
    """
    with _sides(settings) as (rel, rec):
        return Grants(rel.grants() if rel else [], rec.privileges() if rec else [])


def problems(settings: Settings) -> list[str]:
    """Problems of templates and routines.

    These are bindings that do not fit, procedures that end a transaction, and routines that truncate values.
    """
    found = []
    registry = TemplateRegistry.from_folder(settings.schema_path)
    with contextlib.closing(AdapterFactory(settings, registry)) as factory:
        for name in registry:
            mismatches: list[SchemaMismatch] = factory.adapter(name).check_bindings()
            found += [line for mismatch in mismatches for line in mismatch.detail.get("mismatches", [mismatch.message])]
    if settings.schema_.dba.rel is not None:
        # Other routines of a database that existed before are the DBA's own business.
        schema, bound = (
            _rel(settings),
            {ref.object.casefold() for name in registry for _, ref in registry[name].refs().values()},
        )
        found += [
            f"procedure {name} commits, runs DDL or dynamic SQL, or calls one that does: it could end the broker's "
            f"transaction, and is not granted; mend it in its R__ file, or drop it in a new versioned file: "
            f"DROP PROCEDURE {name}"
            for name in schema.procedures_that_commit()
            if name.casefold() in bound or schema.creates(name)
        ]
        found += [
            f"routine {name} was made without strict mode and keeps that: it cuts what does not fit; make it anew with "
            "SET sql_mode = 'STRICT_ALL_TABLES,…', or without setting sql_mode in its file"
            for name in schema.not_strict()
            if name.casefold() in bound or schema.creates(name)
        ]
    return found


def rel_schema(settings: Settings) -> RelSchema:
    """The MariaDB side of `schema/`. Raises ConfigurationError: no DBA credentials for it."""
    if settings.schema_.dba.rel is None:
        raise ConfigurationError(
            "no DBA credentials for MariaDB", hint="set BEDS_SCHEMA__DBA__REL__… in the environment"
        )
    return _rel(settings)


@contextlib.contextmanager
def _sides(settings: Settings) -> Iterator[tuple[RelSchema | None, RecSchema | None]]:
    """The schema of each store for which there are DBA credentials."""
    dba = settings.schema_.dba
    if dba.rel is None and dba.rec is None:
        raise ConfigurationError(
            "no DBA credentials", hint="set BEDS_SCHEMA__DBA__REL__… and BEDS_SCHEMA__DBA__REC__URI in the environment"
        )
    if not settings.schema_path.is_dir():
        raise ConfigurationError(f"{settings.schema_path} does not exist", hint="set [schema] path in beds.toml")
    with contextlib.ExitStack() as stack:
        rec = None
        if dba.rec is not None:
            rec = RecSchema([SYSTEM / "rec", settings.schema_path / "rec"], dba.rec)
            stack.callback(rec.close)
        yield (_rel(settings) if dba.rel is not None else None), rec


def _rel(settings: Settings) -> RelSchema:
    dba = settings.schema_.dba.rel
    assert dba is not None
    return RelSchema(
        settings.schema_path / "rel", SYSTEM / "rel", dba, settings.databases.rel, settings.schema_.broker_host
    )
