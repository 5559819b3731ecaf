"""Drafts what `schema/` lacks, and finds what changed in the databases since."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from MySQLdb.cursors import DictCursor

from beds.adapters.mariadb.definition import is_strict
from beds.adapters.mariadb.errors import translated as rel_translated
from beds.adapters.mariadb.session import connect as connect_rel
from beds.adapters.mongo.errors import translated as rec_translated
from beds.adapters.mongo.session import connect as connect_rec
from beds.config import Settings
from beds.errors import BedsError, ConfigurationError, SchemaError, StoreUnavailable, nearest
from beds.schema_tools.change import checksum
from beds.schema_tools.draft.catalogue import Catalogue, Column, Index, Routine, Table, read_catalogue
from beds.schema_tools.draft.collections import Collection, draft_collection, read_collection
from beds.schema_tools.draft.naming import stem, template_name
from beds.schema_tools.draft.routines import Routines, draft_view
from beds.schema_tools.draft.tables import draft_table
from beds.schema_tools.draft.template import CannotDraft, TemplateDraft
from beds.schema_tools.rel import DDL_SECONDS, created_in
from beds.templates.registry import SYSTEM, TemplateRegistry

RECORD = "drafted.json"
"""The file in `schema/` that says what each table, routine and collection was like when it was drafted."""
_OWN = "beds_"

Description = dict[str, str]
"""What a table, routine or collection is like, in words that a comparison can use: `film_id` → `smallint not null`."""


@dataclass(frozen=True)
class Choice:
    """What to draft.

    Args:
        rel: names of tables, views, procedures and functions.
        rec: names of collections. Without any name, everything in both databases is drafted.
        prefix: of the new objects' names.
        jobs: whether to draft what only jobs call, too.
        again: whether to draft what `schema/` has files for, too, to compare the two.
    """

    rel: Sequence[str] = ()
    rec: Sequence[str] = ()
    prefix: str = ""
    jobs: bool = False
    again: bool = False

    @property
    def is_all(self) -> bool:
        return not (self.rel or self.rec)


@dataclass(frozen=True)
class Drafted:
    """Args:
    source: such as `table film`.
    template: the template's name.
    files: their texts, by the path below `schema/`.
    objects: how many objects the files create.
    remarks: what was left out, and why.
    """

    source: str
    template: str
    files: Mapping[str, str]
    objects: int
    remarks: Sequence[str] = ()


@dataclass
class Draft:
    """The result of `draft`: nothing of it is written yet.

    Args:
        drafted: what was drafted.
        refused: the reason, by source, why something cannot be drafted.
        present: the sources that `schema/` has files for.
        described: what each drafted source is like.
    """

    drafted: list[Drafted] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    present: list[str] = field(default_factory=list)
    described: dict[str, Description] = field(default_factory=dict)

    def write(self, folder: Path, *, record: bool = True) -> int:
        """Write the files. No file is overwritten.

        Args:
            folder: `schema/`, or another one.
            record: whether to note what the sources are like, for `drift`.

        Returns:
            The number of files.

        Raises:
            SchemaError: a file exists meanwhile, or cannot be written.
        """
        written = 0
        before = read_record(folder) if record else {}
        try:
            for each in self.drafted:
                for name, text in each.files.items():
                    file = folder / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("x", encoding="utf-8") as to:
                        to.write(text)
                    written += 1
            if record and self.drafted:
                _write_record(folder, before | self.described)
        except OSError as error:
            raise SchemaError(
                f"{error.filename} cannot be written: {error.strerror}",
                detail={"written": written},
                hint="move the file away, or draft into another folder with --out",
            ) from None
        return written


def draft(settings: Settings, choice: Choice) -> Draft:
    """Draft the objects and templates that `schema/` lacks for what the databases hold.

    Args:
        settings: with the DBA's credentials.
        choice: what to draft.

    Raises:
        ConfigurationError: there are no DBA credentials for a store.
        SchemaError: a chosen name is in no database.
        StoreUnavailable: a database cannot be reached.
    """
    drafter = _Drafter(settings, choice)
    if choice.rel or (choice.is_all and settings.schema_.dba.rel is not None):
        drafter.rel()
    if choice.rec or (choice.is_all and settings.schema_.dba.rec is not None):
        drafter.rec()
    if settings.schema_.dba.rel is None and settings.schema_.dba.rec is None:
        raise ConfigurationError(
            "no DBA credentials", hint="set BEDS_SCHEMA__DBA__REL__… and BEDS_SCHEMA__DBA__REC__URI in the environment"
        )
    return drafter.found


class _Drafter:
    def __init__(self, settings: Settings, choice: Choice) -> None:
        self.settings = settings
        self.choice = choice
        self.found = Draft()
        self.folder = settings.schema_path
        known = _registry(self.folder)
        own = {} if choice.again else known
        self.templates = {name for name in known if name in own or known[name].system}
        self.bound = {ref.object for template in own.values() for _, ref in template.refs().values()}
        self.created = created_in(
            file.read_text("utf-8-sig", "replace") for file in (self.folder / "rel").glob("*.sql")
        )

    def rel(self) -> None:
        catalogue = _rel_catalogue(self.settings, self.choice.rel or None)
        tables = {each.name: each for each in catalogue.tables if not each.name.startswith(_OWN)}
        routines = [each for each in catalogue.routines if not each.name.startswith(_OWN)]
        names = [*tables, *(each.name for each in routines)]
        _refuse_unknown(self.choice.rel, names, "table, view, procedure or function", "MariaDB")
        callable_ones = Routines(catalogue.routines)
        # A view would be called in a procedure's place.
        taken = {name.casefold() for name in (*(each.name for each in routines), *tables)}
        if self.choice.again:
            taken -= self.created
        wanted = set(self.choice.rel)

        def chosen(name: str) -> bool:
            return self.choice.is_all or name in wanted

        for table in (each for each in tables.values() if chosen(each.name)):
            if table.is_view:
                self._bind(
                    f"view {table.name}",
                    table.name,
                    describe_table(table),
                    partial(draft_view, table, callable_ones.view_writes(table)),
                )
            else:
                self._table(table, catalogue.reserved_words, taken)
        for routine in (each for each in routines if chosen(each.name)):
            sets = callable_ones.result_sets(routine).names() if routine.kind == "procedure" else []
            description = describe_routine(routine, sets)
            self._bind(
                f"{routine.kind} {routine.name}", routine.name, description, partial(callable_ones.draft, routine)
            )

    def _table(self, table: Table, reserved: frozenset[str], taken: set[str]) -> None:
        """Draft a table, whose procedures must not have the name of a routine that is there already."""
        source, file = f"table {table.name}", f"rel/R__{stem(table.name)}.sql"
        if self._has_files(source, table.name, file):
            return
        with self._refusing(source):
            name = self._template_name(table.name)
            drafted = draft_table(table, name, self.choice.prefix, reserved, jobs=self.choice.jobs)
            if clash := sorted(each for each in drafted.objects if each.casefold() in taken):
                raise CannotDraft(f"the name {clash[0]} is taken already; give another prefix with --prefix")
            taken |= {each.casefold() for each in drafted.objects}
            files = {file: drafted.sql, f"templates/{stem(table.name)}.toml": drafted.template.text()}
            self._add(source, name, files, len(drafted.objects), drafted.remarks, describe_table(table))

    def rec(self) -> None:
        with _rec_database(self.settings) as database:
            names = sorted(n for n in database.list_collection_names() if not n.startswith(("system.", _OWN)))
            own = {folder.name for folder in (SYSTEM / "rec").iterdir()}
            names = [name for name in names if name not in own]
            _refuse_unknown(self.choice.rec, names, "collection", "MongoDB")
            for name in self.choice.rec or names:
                try:
                    with rec_translated():
                        found = read_collection(database, name)
                except StoreUnavailable:
                    raise
                except BedsError as error:
                    self.found.refused[f"collection {name}"] = f"it cannot be read: {error.message}"
                else:
                    self._collection(found)

    def _collection(self, collection: Collection) -> None:
        source = f"{'view' if collection.is_view else 'collection'} {collection.name}"
        folder = f"rec/{collection.name}"
        if not self.choice.again and ((self.folder / folder).exists() or collection.name in self.bound):
            self.found.present.append(source)
            return
        if self._has_files(source, collection.name, folder):
            return
        with self._refusing(source):
            name = self._template_name(collection.name)
            drafted = draft_collection(collection, name, self.choice.prefix, jobs=self.choice.jobs)
            files = {f"{folder}/{file}": text for file, text in drafted.files.items()}
            files[f"templates/{stem(collection.name)}.toml"] = drafted.template.text()
            objects = len(drafted.files) - ("collection.json" in drafted.files)
            self._add(source, name, files, objects, drafted.remarks, describe_collection(collection))

    def _bind(self, source: str, name: str, description: Description, make: Callable[[str], TemplateDraft]) -> None:
        """Draft the template of a routine or view that exists, unless a template binds it or a file creates it."""
        if name.casefold() in self.created:
            return
        if name in self.bound:
            self.found.present.append(source)
            return
        file = f"templates/{stem(name)}.toml"
        if self._has_files(source, name, file):
            return
        with self._refusing(source):
            template = make(self._template_name(name))
            self._add(source, template.name, {file: template.text()}, 0, (), description)

    def _add(
        self,
        source: str,
        template: str,
        files: Mapping[str, str],
        objects: int,
        remarks: Sequence[str],
        description: Description,
    ) -> None:
        self.templates.add(template)
        self.found.drafted.append(Drafted(source, template, files, objects, remarks))
        self.found.described[source] = description

    @contextlib.contextmanager
    def _refusing(self, source: str) -> Iterator[None]:
        try:
            yield
        except CannotDraft as reason:
            self.found.refused[source] = str(reason)

    def _has_files(self, source: str, name: str, *files: str) -> bool:
        drafted = {file for each in self.found.drafted for file in each.files}
        wanted = {*files, f"templates/{stem(name)}.toml"}
        if not self.choice.again and any((self.folder / file).exists() for file in wanted):
            self.found.present.append(source)
            return True
        if twice := sorted(wanted & drafted):
            self.found.refused[source] = f"another one is drafted into schema/{twice[0]}; draft it alone, with --out"
            return True
        return False

    def _template_name(self, name: str) -> str:
        wanted = template_name(name)
        candidates = [wanted, f"{wanted}Records", *(f"{wanted}{number}" for number in range(2, 100))]
        return next(each for each in candidates if each not in self.templates)


# --- What changed since ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """One difference between a source now and when it was drafted; `now` or `before` is empty if it is new or gone."""

    source: str
    part: str
    before: str
    now: str

    def __str__(self) -> str:
        if not self.part:
            return f"{self.source}: is gone"
        if not self.before:
            return f"{self.source}: {self.part} is new: {self.now}"
        if not self.now:
            return f"{self.source}: {self.part} is gone; it was {self.before}"
        return f"{self.source}: {self.part} was {self.before}, and is {self.now}"


def drift(settings: Settings) -> list[Drift]:
    """Compare the databases with the record of the draft.

    Raises:
        SchemaError: nothing was drafted.
        StoreUnavailable: a database cannot be reached.
    """
    record = read_record(settings.schema_path)
    if not record:
        raise SchemaError(f"{settings.schema_path / RECORD} does not exist", hint="draft first: beds schema draft")
    current = _described_now(settings, record)
    found = []
    for source, before in sorted(record.items()):
        now = current.get(source)
        if now is None:
            found.append(Drift(source, "", "", ""))
            continue
        for part in dict.fromkeys([*before, *now]):
            if before.get(part, "") != now.get(part, ""):
                found.append(Drift(source, part, before.get(part, ""), now.get(part, "")))
    return found


def accept(settings: Settings) -> int:
    """Note the databases as they are now, so that `drift` compares with this state. Returns the number of sources.

    Raises:
        SchemaError: nothing was drafted.
    """
    record = read_record(settings.schema_path)
    if not record:
        raise SchemaError(f"{settings.schema_path / RECORD} does not exist", hint="draft first: beds schema draft")
    current = _described_now(settings, record)
    _write_record(settings.schema_path, current)
    return len(current)


def _described_now(settings: Settings, record: Iterable[str]) -> dict[str, Description]:
    """Describe the recorded sources as they are now; one that is gone is missing.

    Raises:
        ConfigurationError: there are no DBA credentials for the store of a source.
    """
    wanted = set(record)
    for source, stores in _stores_of(wanted).items():
        if not any(getattr(settings.schema_.dba, store) is not None for store in stores):
            raise ConfigurationError(
                f"{source} was drafted, and there are no DBA credentials for its database",
                hint="set BEDS_SCHEMA__DBA__REL__… or BEDS_SCHEMA__DBA__REC__URI in the environment",
            )
    found: dict[str, Description] = {}
    if settings.schema_.dba.rel is not None:
        catalogue = _rel_catalogue(settings, ())
        routines = Routines(catalogue.routines)
        for table in catalogue.tables:
            found[f"{'view' if table.is_view else 'table'} {table.name}"] = describe_table(table)
        for each in catalogue.routines:
            sets = routines.result_sets(each).names() if each.kind == "procedure" else []
            found[f"{each.kind} {each.name}"] = describe_routine(each, sets)
    if settings.schema_.dba.rec is not None:
        with _rec_database(settings) as database:
            for name in database.list_collection_names():
                for source in (f"collection {name}", f"view {name}"):
                    if source in wanted:
                        found[source] = describe_collection(read_collection(database, name))
    return {source: description for source, description in found.items() if source in wanted}


def _stores_of(sources: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The stores that may hold each source; a view may be of either."""
    stores = {"collection": ("rec",), "view": ("rel", "rec")}
    return {source: stores.get(source.partition(" ")[0], ("rel",)) for source in sorted(sources)}


def describe_table(table: Table) -> Description:
    """A table's or view's columns, keys and indexes."""
    found = {column.name: _describe_column(column, table) for column in table.columns}
    found |= {f"index {index.name}": _describe_index(index) for index in table.indexes}
    if table.is_view:
        found |= {"query": checksum(table.text)[:12], "security": table.security.lower()}
    return found


def describe_routine(routine: Routine, sets: Sequence[str]) -> Description:
    """A routine's parameters and result sets, and a checksum of its text."""
    parameters = ", ".join(f"{each.mode} {each.name} {each.type.declared}" for each in routine.parameters)
    return {
        "parameters": f"({parameters})",
        "result sets": ", ".join(sets) or "-",
        "text": checksum(routine.body)[:12],
        "security": routine.security.lower(),
        "strict mode": "yes" if is_strict(routine.sql_mode) else "no",
    }


def describe_collection(collection: Collection) -> Description:
    """A collection's validator, other options and indexes."""
    usual = {"validationLevel": "strict", "validationAction": "error"}  # collMod writes them down
    options = {name: value for name, value in collection.options.items() if usual.get(name) != value}
    found = {name: json.dumps(value, default=str) for name, value in options.items()}
    for index in collection.indexes:
        rest = {name: value for name, value in index.items() if name not in ("v", "ns", "key", "name")}
        found[f"index {index['name']}"] = json.dumps([dict(index["key"]), rest], default=str)
    return found


def _describe_column(column: Column, table: Table) -> str:
    parts = [column.type.declared, "" if column.nullable else "not null"]
    parts += [f"default {column.default}" if column.default else "", "auto_increment" if column.is_auto else ""]
    parts += ["generated" if column.is_generated else "", "json" if column.is_json else "", column.collation]
    parts += [f"references {table.references[column.name]}" if column.name in table.references else ""]
    return " ".join(part for part in parts if part)


def _describe_index(index: Index) -> str:
    kind = "unique" if index.is_unique else index.kind.lower()
    return f"{kind} ({', '.join(index.columns)}){' of prefixes' if index.has_prefix else ''}"


def read_record(folder: Path) -> dict[str, Description]:
    """Read the description of each drafted source. Raises SchemaError: the file is no such record."""
    file = folder / RECORD
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(source): {str(k): str(v) for k, v in of.items()} for source, of in found["sources"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise SchemaError(
            f"{file} is no record of drafts", detail={"file": str(file)}, hint="restore it from your repository"
        ) from None


def _write_record(folder: Path, sources: Mapping[str, Description]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = "What `beds schema draft` saw; `beds schema draft --check` compares it with the databases."
    text = json.dumps({"about": about, "sources": dict(sorted(sources.items()))}, indent=2, ensure_ascii=False)
    new = folder / f"{RECORD}.new"
    new.write_text(f"{text}\n", encoding="utf-8")
    new.replace(folder / RECORD)


# --- The databases ---------------------------------------------------------------------------------------------------


def _rel_catalogue(settings: Settings, sampled: Iterable[str] | None) -> Catalogue:
    dba = settings.schema_.dba.rel
    if dba is None:
        raise ConfigurationError(
            "no DBA credentials for MariaDB", hint="set BEDS_SCHEMA__DBA__REL__… in the environment"
        )
    with rel_translated(), contextlib.closing(connect_rel(dba, DDL_SECONDS)) as connection:
        return read_catalogue(connection.cursor(DictCursor), sampled)


@contextlib.contextmanager
def _rec_database(settings: Settings) -> Iterator[Any]:
    dba = settings.schema_.dba.rec
    if dba is None:
        raise ConfigurationError(
            "no DBA credentials for MongoDB", hint="set BEDS_SCHEMA__DBA__REC__URI in the environment"
        )
    with contextlib.closing(connect_rec(dba, DDL_SECONDS)) as client, rec_translated():
        yield client[dba.database]


def _registry(folder: Path) -> TemplateRegistry:
    if not (folder / "templates").is_dir():
        return TemplateRegistry()
    return TemplateRegistry.from_folder(folder, strict=False)


def _refuse_unknown(wanted: Sequence[str], known: Iterable[str], what: str, where: str) -> None:
    names = list(known)
    for name in wanted:
        if name not in names:
            raise SchemaError(
                f"there is no {what} {name!r} in {where}{nearest(name, names)}",
                detail={"name": name},
                hint=f"it has: {', '.join(names[:20]) or 'none'}",
            )
