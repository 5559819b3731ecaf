"""A template: the developer's TOML file with a data domain's fields and named objects."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence, Set
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from beds.domain.change import CHANGES
from beds.domain.event import Operation, Store
from beds.domain.record_id import id_text
from beds.errors import (
    InvalidPayload,
    MissingField,
    OutOfRange,
    TemplateError,
    UnknownFetch,
    UnknownField,
    UnknownOperation,
    WrongType,
    nearest,
)
from beds.templates.fields import FieldSpec, check_plain

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
DEFAULT_LIMIT = 100
"""Records of a page when neither the caller nor the template sets a limit."""
MAX_LIMIT = 10_000
EXPECTED_VERSION = "expected_version"
"""The argument of an update or a delete that names the version that the record must have, and the reserved parameter
of the object that compares it."""
COMPARING = frozenset({Operation.UPDATE, Operation.DELETE})
"""The operations that take an expected version."""
_VERSION_TYPES = ("integer", "string", "datetime", "uuid", "bytes", "object_id")
"""Types whose values both stores compare exactly."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectRef(_Table):
    """The named object that executes an operation."""

    object: Name
    idempotent: bool = False
    """Whether it is safe to repeat, and so needs no ledger entry."""


class FetchSpec(ObjectRef):
    """One `[fetch.<name>]` table."""

    cursor: tuple[Name, ...] = ()
    """Fields by which the object orders and pages; it takes each as the parameter `after_<field>`. Together they must
    identify one record and never be null: otherwise pages would skip records, or never end."""
    unique: bool = False
    """Whether the cursor's fields identify a record of the result without the template's key, as in a grouping."""
    results: tuple[Name, ...] = ()
    """Names of the result sets of a procedure that returns several. The page then has one record, with a list of
    records under each name."""
    optional: tuple[Name, ...] = ()
    """Arguments that a caller may omit; the object gets null."""
    args: dict[Name, FieldSpec] = {}
    """Arguments that are no fields of the template."""
    internal: bool = False
    """Whether only BEDS itself may use the fetch (system templates only)."""
    owner: Name | None = None
    """The argument that BEDS fills with the client's AMQP user, so that a client sees only its own records (system
    templates only). A fetch of a system template without it is for operators."""
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT
    max_limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 1000
    range: bool = False
    """Whether the object also takes `until_<field>` for each cursor field, so that a job can read it by key ranges."""


class KeysSpec(FetchSpec):
    """The table `[by_keys]`: the object takes `keys` and returns these records."""

    args: dict[Name, FieldSpec] = {"keys": FieldSpec(type="array", required=True)}
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = MAX_LIMIT
    max_limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = MAX_LIMIT


class _Header(_Table):
    name: Name
    store: Store
    key: tuple[Name, ...]
    version: Name | None = None
    """The field that the objects change with each write of the record, so that an update or a delete can name the
    version that it expects."""
    description: str = ""
    changes: bool = False
    """Whether BEDS keeps a log of its committed writes, which clients can follow."""
    item: Name | None = None
    """The fetch that takes the key alone and returns that record, for one-record addresses of HTTP. When absent, the
    fetch named `by_<key>` (`by_<first>_<second>` for a composite key), if there is one."""

    @field_validator("key", mode="before")
    @classmethod
    def _as_several(cls, key: Any) -> Any:
        return (key,) if isinstance(key, str) else key


class Template(_Table):
    """A data domain.

    The `check_*` methods validate a caller's data; client and worker both call them.
    """

    template: _Header
    create: ObjectRef | None = None
    create_many: ObjectRef | None = None
    update: ObjectRef | None = None
    delete: ObjectRef | None = None
    fetch: dict[Name, FetchSpec] = {}
    load: ObjectRef | None = None
    """Jobs: a bulk create that takes the keys, too."""
    by_keys: KeysSpec | None = None
    """Jobs: the records of some keys, locked until the end of the transaction."""
    remove_many: ObjectRef | None = None
    """Jobs: deletes the records of some keys."""
    estimate: FetchSpec | None = None
    """Jobs: about how many records a range has; its arguments are those of the range."""
    digest: FetchSpec | None = None
    """Jobs: `records` and `digest` of a range, to compare two tables."""
    job_load: FetchSpec | None = None
    """Jobs: how busy the database is, from 0 to 1."""
    fields: dict[Name, FieldSpec]
    file: Path = Field(default=Path(), exclude=True)
    system: bool = Field(default=False, exclude=True)
    """Whether it is shipped with BEDS; only BEDS writes its records."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Template:
        if not self.keys or len(set(self.keys)) < len(self.keys):
            raise ValueError("template.key takes one field, or several different ones")
        for key in self.keys:
            if key not in self.fields:
                raise ValueError(f"template.key {key!r} is not one of the fields")
            key_spec = self.fields[key]
            if self.store is Store.REC and not (key_spec.required or key_spec.generate):
                raise ValueError(f"fields.{key}: the key of a document is required = true, or has generate")
            if len(self.keys) > 1 and not (key_spec.required or key_spec.generate):
                raise ValueError(f"fields.{key}: a part of a composite key is required = true, or has generate")
        if (item := self.template.item) is not None and item not in self.fetch:
            raise ValueError(f"template.item: there is no fetch {item!r}")
        if self.version is not None:
            self._check_version(self.version)
        if self.keeps_changes and CHANGES in self.fetch:
            raise ValueError(f"fetch.{CHANGES}: with template.changes, this name means the log of changes")
        for name, spec in self.fetch.items():
            for cursor_field in spec.cursor:
                if cursor_field not in self.fields:
                    raise ValueError(f"fetch.{name}.cursor: {cursor_field!r} is not one of the fields")
            if spec.results and (spec.cursor or self.store is Store.REC):
                raise ValueError(f"fetch.{name}.results: for procedures of MariaDB that do not page")
            if len(set(spec.results)) < len(spec.results):
                raise ValueError(f"fetch.{name}.results: a name stands twice")
            for argument in spec.optional:
                if argument not in spec.args and argument not in self.fields:
                    raise ValueError(f"fetch.{name}.optional: {argument!r} is no field and no argument of the fetch")
            for key in ("internal", "owner"):
                if getattr(spec, key) and not self.system:
                    raise ValueError(f"fetch.{name}.{key} is for BEDS's own templates")
            if spec.limit > spec.max_limit:
                raise ValueError(f"fetch.{name}.limit is above its max_limit")
            if spec.range and not spec.cursor:
                raise ValueError(f"fetch.{name}.range needs a cursor: the fields by which the object is ordered")
        return self

    def _check_version(self, name: str) -> None:
        if name not in self.fields:
            raise ValueError(f"template.version {name!r} is not one of the fields")
        if name in self.keys:
            raise ValueError(f"template.version {name!r} is a part of the key, which no write changes")
        kind = self.fields[name].type
        if kind not in _VERSION_TYPES:
            raise ValueError(f"template.version {name!r} is of type {kind}; a version is {', '.join(_VERSION_TYPES)}")

    @cached_property
    def _required_or_generated(self) -> tuple[tuple[str, FieldSpec], ...]:
        """The fields that a create must have or gets; cached, because a bulk create needs them for each record."""
        return tuple((name, spec) for name, spec in self.fields.items() if spec.required or spec.generate)

    @property
    def name(self) -> str:
        return self.template.name

    @property
    def store(self) -> Store:
        return self.template.store

    @property
    def keys(self) -> tuple[str, ...]:
        """The field or fields that identify a record."""
        return self.template.key

    @property
    def item_fetch(self) -> str:
        """The fetch of one record by its key; empty if there is none."""
        usual = f"by_{'_'.join(self.keys)}"
        return self.template.item or (usual if usual in self.fetch else "")

    @property
    def version(self) -> str | None:
        """The field that the objects change with each write; None if the template names none."""
        return self.template.version

    @property
    def keeps_changes(self) -> bool:
        """Whether BEDS keeps a log of its committed writes."""
        return self.template.changes

    def require_changes(self) -> None:
        """Raises UnknownOperation: the template keeps no changes."""
        if not self.keeps_changes:
            raise UnknownOperation(
                f"template {self.name} keeps no changes",
                detail={"template": self.name},
                hint="say changes = true in its [template], and restart the workers",
            )

    @property
    def expected_version(self) -> FieldSpec | None:
        """The type of the reserved parameter `expected_version`: the version's.

        None if the template has no version, or a field of the parameter's name, which takes precedence.
        """
        if self.version is None or EXPECTED_VERSION in self.fields:
            return None
        return self.fields[self.version]

    @property
    def key_name(self) -> str:
        """The key as text: `faa`, or `order_id, line_no`."""
        return ", ".join(self.keys)

    def key_of(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values of a record's key; None for a missing part."""
        return tuple(record.get(name) for name in self.keys)

    def id_of(self, record: Mapping[str, Any]) -> str:
        """A record's key as text, as in replies, audit and lineage; empty if a part is missing."""
        parts = self.key_of(record)
        return "" if None in parts else id_text(parts)

    @property
    def has_sensitive_key(self) -> bool:
        return any(self.fields[name].sensitive for name in self.keys)

    def shown_id(self, record: Mapping[str, Any]) -> str:
        """`id_of` for messages: masked if a part of the key is sensitive."""
        return "•••" if self.has_sensitive_key else self.id_of(record)

    def uncertain_cursor(self, spec: FetchSpec) -> str:
        """Why pages of a fetch could skip records or never end; empty if they cannot."""
        for name in spec.cursor:
            if not (name in self.keys or self.fields[name].required):
                return f"its cursor names {name}, which may be null: no page can begin after a null"
        missing = [name for name in self.keys if name not in spec.cursor]
        if spec.cursor and missing and not spec.unique:
            return (
                f"its cursor lacks the key {', '.join(missing)}: records with equal values would be skipped; add it at "
                f"the end, or say unique = true where the result has one record for each value"
            )
        return ""

    def object_for(self, operation: Operation, using: str = "") -> ObjectRef:
        """The object that executes an operation.

        Raises:
            UnknownOperation, UnknownFetch: the template names none.
        """
        if operation is Operation.FETCH:
            return self.fetch_spec(using)
        ref = self._writes().get(operation)
        if ref is None:
            known = [str(o) for o in self.operations()]
            raise UnknownOperation(
                f"template {self.name} has no operation {operation}",
                detail={"template": self.name, "operation": str(operation), "known": known},
                hint=f"it has {', '.join(known)}; add [{_SECTION[operation]}] to {self.file.name or 'the template'}",
            )
        return ref

    def fetch_spec(self, using: str) -> FetchSpec:
        """Raises UnknownFetch."""
        spec = self.fetch.get(using)
        if spec is None:
            named = f"no fetch {using!r}{nearest(using, self.fetch)}" if using else "several ways to fetch: name one"
            raise UnknownFetch(
                f"template {self.name} has {named}",
                detail={"template": self.name, "using": using, "known": sorted(self.fetch)},
                hint=f"give using= one of: {', '.join(sorted(self.fetch)) or '(none)'}",
            )
        return spec

    def operations(self) -> list[Operation]:
        return [op for op, ref in self._writes().items() if ref] + ([Operation.FETCH] if self.fetch else [])

    def refs(self) -> dict[str, tuple[Operation, ObjectRef]]:
        """All named objects of the template, by the TOML table that names them."""
        found = {_SECTION[op]: (op, ref) for op, ref in self._writes().items() if ref}
        found |= {f"fetch.{name}": (Operation.FETCH, spec) for name, spec in self.fetch.items()}
        return found | {role: (operation, ref) for role, operation in ROLES.items() if (ref := getattr(self, role))}

    def require(self, table: str) -> Operation:
        """The operation of a table that a job needs. Raises TemplateError: the template lacks it."""
        try:
            return self.refs()[table][0]
        except KeyError:
            raise TemplateError(
                f"template {self.name} has no [{table}], which the job needs",
                detail={"template": self.name, "table": table},
                hint=f"add [{table}] to {self.file.name or 'the template'}",
            ) from None

    def _writes(self) -> dict[Operation, ObjectRef | None]:
        return {
            Operation.CREATE: self.create,
            Operation.CREATE_MANY: self.create_many,
            Operation.UPDATE: self.update,
            Operation.DELETE: self.delete,
        }

    def check_create(self, payload: Any, where: str = "payload", doubtful: Set[str] | None = None) -> dict[str, Any]:
        """Validate a new record, and fill in generated fields.

        Args:
            payload: the record.
            where: its place, for messages.
            doubtful: `doubtful_fields` of many records; None checks all of them.

        Raises:
            InvalidPayload: or a subclass; names the field.
        """
        checked = self._check_fields(payload, where, doubtful)
        for name, spec in self._required_or_generated:
            if name not in checked and spec.generate:
                checked[name] = spec.make()
            if spec.required and name not in checked:
                raise MissingField(
                    f"{where} lacks the required field {name}", detail={"field": name, "template": self.name}
                )
        return checked

    def check_create_many(self, payloads: Any) -> list[dict[str, Any]]:
        if not isinstance(payloads, (list, tuple)):
            raise WrongType(f"payloads takes a list of records, not {type(payloads).__name__}", detail=_at("payloads"))
        if not payloads:
            raise InvalidPayload("payloads is empty", detail=_at("payloads"), hint="send at least one record")
        doubtful = self.doubtful_fields(payloads)
        return [self.check_create(payload, f"payloads[{index}]", doubtful) for index, payload in enumerate(payloads)]

    def doubtful_fields(self, payloads: Sequence[Any]) -> Set[str]:
        """The fields of many records whose values have to be checked one by one."""
        if not all(type(payload) is dict for payload in payloads):
            return self.fields.keys()
        return frozenset(
            name
            for name, spec in self.fields.items()
            if not spec.keeps_all([payload[name] for payload in payloads if name in payload])
        )

    def check_update(self, payload: Any) -> dict[str, Any]:
        """Validate an update: the key and the changed fields. An omitted field stays unchanged.

        The version is no field to change, because the object changes it.
        """
        checked = self._check_fields(payload, "payload")
        if self.version in checked:
            raise UnknownField(
                f"an update of {self.name} does not take the field {self.version}: the object changes this version",
                detail={"field": self.version, "template": self.name},
                hint=f"leave it out; {EXPECTED_VERSION} takes the version that the record must have",
            )
        for key in self.keys:
            if checked.get(key) is None:
                raise MissingField(f"an update needs the key field {key}", detail=_at(key))
        if len(checked) == len(self.keys):
            raise InvalidPayload("the update changes nothing", detail=_at("payload"), hint="give a field to change")
        return checked

    def check_expected_version(self, operation: Operation, value: Any) -> Any:
        """Validate the version that a record must have for an operation. None stays None: nothing is compared.

        Raises:
            UnknownField: the operation takes none, or the template has none.
            InvalidPayload: or a subclass; it is no value of the version's field.
        """
        if value is None:
            return None
        if operation not in COMPARING:
            known = " and ".join(sorted(COMPARING))
            raise self._no_version(f"{operation} takes no {EXPECTED_VERSION}", f"only {known} compare the version")
        if self.version is None:
            raise self._no_version(
                f"template {self.name} has no version",
                f'add version = "<field>" to [template] of {self.file.name or "the template"}',
            )
        if self.expected_version is None:
            raise self._no_version(
                f"template {self.name} has a field {EXPECTED_VERSION}, which its objects take instead",
                "give that field another name",
            )
        return self.expected_version.check(EXPECTED_VERSION, value)

    def _no_version(self, problem: str, remedy: str) -> UnknownField:
        return UnknownField(problem, detail={"field": EXPECTED_VERSION, "template": self.name}, hint=remedy)

    def check_record_id(self, record_id: Any) -> Any:
        """Validate the key of the record to delete: a value, or a composite key's values as a mapping or in order."""
        if len(self.keys) == 1:
            return self._check_key_part(self.keys[0], record_id)
        match record_id:
            case Mapping() if record_id.keys() == set(self.keys):
                parts = [record_id[name] for name in self.keys]
            case list() | tuple() if len(record_id) == len(self.keys):
                parts = list(record_id)
            case _:
                raise WrongType(
                    f"the key of {self.name} has {len(self.keys)} parts: {self.key_name}",
                    detail=_at(self.keys[0]),
                    hint="give a mapping of them, or a list in this order",
                )
        return {name: self._check_key_part(name, part) for name, part in zip(self.keys, parts, strict=True)}

    def _check_key_part(self, name: str, value: Any) -> Any:
        if value is None:
            raise MissingField(f"delete_record needs the record's {name}", detail=_at(name))
        return self.fields[name].check(name, value)

    def key_values(self, record_id: Any) -> dict[str, Any]:
        """The parts of a checked key by name."""
        return dict(record_id) if len(self.keys) > 1 else {self.keys[0]: record_id}

    def check_fetch(
        self, using: Any, args: Any, limit: Any = None, cursor: Any = ""
    ) -> tuple[str, dict[str, Any], int, str]:
        """Validate a fetch's name, arguments, limit and cursor.

        An argument that the template does not define is checked by the worker, which has the object's parameters.
        """
        if not isinstance(using, str):
            raise WrongType(f"using takes a name, not {type(using).__name__}", detail=_at("using"))
        name = using or (next(iter(self.fetch)) if len(self.fetch) == 1 else "")
        spec = self.fetch_spec(name)
        given = _as_mapping({} if args is None else args, "args")
        checked = {}
        for arg, value in given.items():
            known = spec.args.get(arg) or self.fields.get(arg)
            # Null is allowed only for an optional argument or the owner, and only if the field is not required.
            if known:
                checked[arg] = known.check(arg, value, nullable=arg in spec.optional or arg == spec.owner)
            else:
                check_plain(str(arg)[:64], {arg: value})
                checked[arg] = value
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
            raise WrongType(f"limit takes an integer, not {type(limit).__name__}", detail=_at("limit"))
        if limit is not None and not 1 <= limit <= spec.max_limit:
            raise OutOfRange(
                f"limit must lie between 1 and {spec.max_limit}",
                detail={"field": "limit", "max": spec.max_limit},
                hint="follow the page's cursor for more",
            )
        if not isinstance(cursor, str):
            raise WrongType(
                f"cursor takes the text of a page's cursor, not {type(cursor).__name__}", detail=_at("cursor")
            )
        return name, checked, limit or spec.limit, cursor

    def _check_fields(self, payload: Any, where: str, doubtful: Set[str] | None = None) -> dict[str, Any]:
        given = _as_mapping(payload, where)
        fields = self.fields
        if not given.keys() <= fields.keys():
            name = next(name for name in given if name not in fields)
            raise UnknownField(
                f"{where} has the unknown field {name!r}{nearest(str(name), fields)}",
                detail={"field": str(name), "template": self.name, "known": list(fields)},
                hint=f"the fields of {self.name}: {', '.join(fields)}",
            )
        try:
            if doubtful is None:
                return {name: fields[name].check(name, value) for name, value in given.items()}
            checked = dict(given)
            if doubtful:
                checked |= {name: fields[name].check(name, value) for name, value in given.items() if name in doubtful}
            return checked
        except InvalidPayload as error:
            error.detail |= {"template": self.name, "where": where}
            raise


ROLES = {
    "load": Operation.CREATE_MANY,
    "by_keys": Operation.FETCH,
    "remove_many": Operation.DELETE,
    "estimate": Operation.FETCH,
    "digest": Operation.FETCH,
    "job_load": Operation.FETCH,
}
"""The tables that only jobs use, and the operation whose rules each follows."""
_SECTION = {
    Operation.CREATE: "create",
    Operation.CREATE_MANY: "create_many",
    Operation.UPDATE: "update",
    Operation.DELETE: "delete",
}


def load_template(file: Path, *, system: bool = False) -> Template:
    """Read one template file; `system` if BEDS ships it.

    Raises:
        TemplateError: it cannot be read or is invalid; names the file and the key.
    """
    try:
        # utf-8-sig, because some editors write a byte order mark. Decimal keeps a limit exactly as written.
        data = tomllib.loads(file.read_text(encoding="utf-8-sig"), parse_float=Decimal)
        return Template.model_validate({**data, "file": file, "system": system})
    except ValidationError as failed:
        problems = [
            f"{'.'.join(str(part) for part in p['loc'])}: "
            + ("unknown key" + nearest(str(p["loc"][-1]), _keys()) if p["type"] == "extra_forbidden" else p["msg"])
            for p in failed.errors(include_url=False, include_input=False)
        ]
        raise TemplateError(
            f"{file}: " + "; ".join(problems),
            detail={"file": str(file), "problems": problems},
            hint="mend the file; `beds template list` checks it again",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise TemplateError(
            f"{file} cannot be read: {error}", detail={"file": str(file)}, hint="mend the file"
        ) from None


def _keys() -> set[str]:
    models: tuple[type[BaseModel], ...] = (Template, _Header, ObjectRef, FetchSpec, KeysSpec, FieldSpec)
    return {name for model in models for name in model.model_fields}


def _as_mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise WrongType(f"{where} takes an object with named fields, not {type(value).__name__}", detail=_at(where))
    return dict(value)


def _at(field: str) -> dict[str, Any]:
    return {"field": field}
