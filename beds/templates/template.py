"""A template: the developer's TOML file that names a data domain and the objects that serve it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from beds.domain.event import Operation, Store
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
"""Records of a page when neither the caller nor the template says."""
MAX_LIMIT = 10_000


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectRef(_Table):
    """Which named object carries out an operation."""

    object: Name
    idempotent: bool = False
    """Safe to repeat: needs no ledger entry."""


class FetchSpec(ObjectRef):
    """One `[fetch.<name>]` table."""

    cursor: tuple[Name, ...] = ()
    """Fields by which the object orders and pages; it takes each as the parameter `after_<field>`."""
    optional: tuple[Name, ...] = ()
    """Arguments a caller may leave out; the object gets null."""
    args: dict[Name, FieldSpec] = {}
    """Arguments that are no fields of the template."""
    internal: bool = False
    """For BEDS's own use: not to be asked from outside (system templates only)."""
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT
    max_limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 1000


class _Header(_Table):
    name: Name
    store: Store
    key: Name
    description: str = ""


class Template(_Table):
    """A data domain.

    `check_*` methods are the one place where a caller's data is judged; client and worker both call them.
    """

    template: _Header
    create: ObjectRef | None = None
    create_many: ObjectRef | None = None
    update: ObjectRef | None = None
    delete: ObjectRef | None = None
    fetch: dict[Name, FetchSpec] = {}
    fields: dict[Name, FieldSpec]
    file: Path = Field(default=Path(), exclude=True)
    system: bool = Field(default=False, exclude=True)
    """Shipped with BEDS, which alone writes there."""

    @model_validator(mode="after")
    def _hangs_together(self) -> Template:
        if self.key not in self.fields:
            raise ValueError(f"template.key {self.key!r} is not one of the fields")
        key_spec = self.fields[self.key]
        if self.store is Store.REC and not (key_spec.required or key_spec.generate):
            raise ValueError(f"fields.{self.key}: the key of a document is required = true, or has generate")
        for name, spec in self.fetch.items():
            for cursor_field in spec.cursor:
                if cursor_field not in self.fields:
                    raise ValueError(f"fetch.{name}.cursor: {cursor_field!r} is not one of the fields")
            for argument in spec.optional:
                if argument not in spec.args and argument not in self.fields:
                    raise ValueError(f"fetch.{name}.optional: {argument!r} is no field and no argument of the fetch")
            if spec.internal and not self.system:
                raise ValueError(f"fetch.{name}.internal is for BEDS's own templates")
            if spec.limit > spec.max_limit:
                raise ValueError(f"fetch.{name}.limit is above its max_limit")
        return self

    @cached_property
    def _to_see_to(self) -> tuple[tuple[str, FieldSpec], ...]:
        """What a create must have, or gets: few of many fields, and asked for each record of a bulk."""
        return tuple((name, spec) for name, spec in self.fields.items() if spec.required or spec.generate)

    @property
    def name(self) -> str:
        return self.template.name

    @property
    def store(self) -> Store:
        return self.template.store

    @property
    def key(self) -> str:
        return self.template.key

    def object_for(self, operation: Operation, using: str = "") -> ObjectRef:
        """The object behind an operation.

        Raises:
            UnknownOperation, UnknownFetch: the template has none.
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
        return found | {f"fetch.{name}": (Operation.FETCH, spec) for name, spec in self.fetch.items()}

    def _writes(self) -> dict[Operation, ObjectRef | None]:
        return {
            Operation.CREATE: self.create,
            Operation.CREATE_MANY: self.create_many,
            Operation.UPDATE: self.update,
            Operation.DELETE: self.delete,
        }

    def check_create(self, payload: Any, where: str = "payload") -> dict[str, Any]:
        """A new record: all required fields, generated ones filled in.

        Raises:
            InvalidPayload: and its subclasses; names the field.
        """
        checked = self._check_fields(payload, where)
        for name, spec in self._to_see_to:
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
        return [self.check_create(payload, f"payloads[{index}]") for index, payload in enumerate(payloads)]

    def check_update(self, payload: Any) -> dict[str, Any]:
        """The key and what changes; a field left out stays as it is."""
        checked = self._check_fields(payload, "payload")
        if checked.get(self.key) is None:
            raise MissingField(f"an update needs the key field {self.key}", detail=_at(self.key))
        if len(checked) == 1:
            raise InvalidPayload("the update changes nothing", detail=_at("payload"), hint="give a field to change")
        return checked

    def check_record_id(self, record_id: Any) -> Any:
        if record_id is None:
            raise MissingField(f"delete_record needs the record's {self.key}", detail=_at(self.key))
        return self.fields[self.key].check(self.key, record_id)

    def check_fetch(
        self, using: Any, args: Any, limit: Any = None, cursor: Any = ""
    ) -> tuple[str, dict[str, Any], int, str]:
        """A fetch's name, arguments, limit and cursor. An argument the template does not know is left to the worker,
        which knows the object's parameters."""
        if not isinstance(using, str):
            raise WrongType(f"using takes a name, not {type(using).__name__}", detail=_at("using"))
        name = using or (next(iter(self.fetch)) if len(self.fetch) == 1 else "")
        spec = self.fetch_spec(name)
        given = _as_mapping({} if args is None else args, "args")
        checked = {}
        for arg, value in given.items():
            known = spec.args.get(arg) or self.fields.get(arg)
            # A query asks by a value; the field's `required` speaks of records.
            if known:
                checked[arg] = known.check(arg, value, nullable=arg in spec.optional)
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

    def _check_fields(self, payload: Any, where: str) -> dict[str, Any]:
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
            return {name: fields[name].check(name, value) for name, value in given.items()}
        except InvalidPayload as error:
            error.detail |= {"template": self.name, "where": where}
            raise


_SECTION = {
    Operation.CREATE: "create",
    Operation.CREATE_MANY: "create_many",
    Operation.UPDATE: "update",
    Operation.DELETE: "delete",
}


def load_template(file: Path, *, system: bool = False) -> Template:
    """Read one template file; `system` when it is one that BEDS ships.

    Raises:
        TemplateError: it cannot be read or is wrong; names the file, the key and what is allowed.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
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
            hint="see docs/reference/templates.md",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise TemplateError(
            f"{file} cannot be read: {error}", detail={"file": str(file)}, hint="mend the file"
        ) from None


def _keys() -> set[str]:
    models: tuple[type[BaseModel], ...] = (Template, _Header, ObjectRef, FetchSpec, FieldSpec)
    return {name for model in models for name in model.model_fields}


def _as_mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise WrongType(f"{where} takes an object with named fields, not {type(value).__name__}", detail=_at(where))
    return dict(value)


def _at(field: str) -> dict[str, Any]:
    return {"field": field}
