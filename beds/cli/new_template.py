"""`beds template new`: the first version of a template's file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter, ValidationError

from beds.config import load_settings
from beds.domain.event import Store
from beds.errors import ConfigurationError
from beds.templates.fields import FIELD_TYPES
from beds.templates.registry import TemplateRegistry
from beds.templates.template import Name, Template

_LENGTHS = ("string", "bytes", "array")
FORM = "NAME:TYPE[:LENGTH][:required]"
NO_NAME = "is no name: at most 64 letters, digits and underscores, a letter first"


@dataclass(frozen=True, slots=True)
class NewField:
    """A field as the command line names it."""

    name: str
    type: str
    max_length: int | None = None
    required: bool = False


class FieldOption(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A field as `FORM` shows it."""

    name = "field"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> NewField:
        if isinstance(value, NewField):
            return value
        text = str(value).removesuffix(":required")
        name, _, rest = text.partition(":")
        kind, _, length = rest.partition(":")
        has_length = kind in _LENGTHS and re.fullmatch(r"[1-9][0-9]{0,8}", length)
        if kind not in FIELD_TYPES or (length and not has_length):
            self.fail(
                f"{value!r} is not {FORM}; types: {', '.join(FIELD_TYPES)}; with a length: {', '.join(_LENGTHS)}",
                param,
                ctx,
            )
        if not _is_name(name):
            self.fail(f"{name!r} {NO_NAME}", param, ctx)
        return NewField(name, kind, int(length) if length else None, str(value) != text)


def _is_name(text: str) -> bool:
    try:
        TypeAdapter(Name).validate_python(text)
    except ValidationError:
        return False
    return True


@click.command()
@click.argument("name")
@click.option("--store", type=click.Choice([str(s) for s in Store]), required=True, help="MongoDB: rec. MariaDB: rel.")
@click.option(
    "--key",
    "keys",
    type=FieldOption(),
    metavar=FORM,
    multiple=True,
    required=True,
    help="A field of the key; repeatable.",
)
@click.option("--field", "fields", type=FieldOption(), metavar=FORM, multiple=True, help="Another field; repeatable.")
@click.pass_obj
def new(config: str | None, name: str, store: str, keys: tuple[NewField, ...], fields: tuple[NewField, ...]) -> None:
    """Write schema/templates/NAME.toml for a new data domain. The DBA then makes its objects.

    \b
    Example:
      beds template new Gates --store rel --key code:string:4 --field terminal:integer:required
    """
    if not _is_name(name):
        raise click.UsageError(f"{name!r} {NO_NAME}")
    every = (*keys, *fields)
    if twice := sorted({f.name for f in every if sum(f.name == other.name for other in every) > 1}):
        raise click.UsageError(f"the field {twice[0]} is named twice")
    settings = load_settings(config)
    registry = TemplateRegistry.from_folder(settings.schema_path, strict=False)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    file = settings.schema_path / "templates" / f"{words}.toml"
    if name in registry:
        raise ConfigurationError(f"there is a template {name}: {registry[name].file}", hint="choose another name")
    text = template_text(name, words, store, keys, fields)
    try:
        Template.model_validate(tomllib.loads(text))
    except ValidationError:  # each name fits, but those made of them have more than 64 letters
        raise click.UsageError(
            f"the names of the objects of {name!r} would be too long: choose shorter names"
        ) from None
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise ConfigurationError(f"{file} exists", hint="choose another name, or remove the file") from None
    _print_next(name, file, words, store)


def template_text(name: str, words: str, store: str, keys: Sequence[NewField], fields: Sequence[NewField]) -> str:
    """The file's text.

    Args:
        name: of the template.
        words: what the names of its objects begin with.
        store: `rec` or `rel`.
        keys, fields: of a record.
    """
    key = f'"{keys[0].name}"' if len(keys) == 1 else "[" + ", ".join(f'"{k.name}"' for k in keys) + "]"
    by_key = f"by_{'_'.join(k.name for k in keys)}"
    cursor = ", ".join(f'"{k.name}"' for k in keys)
    first = keys[0].name
    parameter = first if store == Store.REC else f"p_{first}"
    objects = "stored commands of schema/rec/" if store == Store.REC else "procedures and views of schema/rel/"
    head = f"""\
# The data domain {name}: its fields, and the DBA's {objects} behind its operations.
# All keys, and what BEDS checks, are in the reference of templates in the documentation of BEDS.
[template]
name = "{name}"
store = "{store}"
key = {key}
# description = ""
# version = "revision"          # a field that the objects change with each write: two people, one record
# changes = true                # BEDS keeps a log of the writes, which clients follow

# An operation whose table is missing does not exist. A parameter takes the field of its name: {parameter} <- {first}.
[create]
object = "{words}_create"
# idempotent = true             # it is safe to repeat, and needs no entry in the ledger
# [create_many]
# object = "{words}_create_many"
[update]
object = "{words}_update"
[delete]
object = "{words}_delete"

# One table for each way to fetch. The object's other parameters are the arguments.
[fetch.{by_key}]
object = "{words}_{by_key}"
# [fetch.all]
# object = "{words}_all"
# cursor = [{cursor}]             # the object takes after_{first} and limit, and sorts by these fields
# optional = []                 # arguments that a caller may leave out
"""
    return head + "".join(_field_text(f, is_key=True) for f in keys) + "".join(_field_text(f) for f in fields)


def _field_text(field: NewField, *, is_key: bool = False) -> str:
    lines = ["", f"[fields.{field.name}]", f'type = "{field.type}"']
    if field.max_length is not None:
        lines.append(f"max_length = {field.max_length}")
    if field.required or is_key:
        lines.append("required = true")
    generated = {"uuid": "uuid7", "object_id": "object_id"}.get(field.type) if is_key else None
    if generated:
        lines.append(f'generate = "{generated}"            # the client makes it when a create leaves it out')
    elif is_key and field.type == "integer":
        lines[-1] += "               # remove this line if the database makes the key"
    return "\n".join(lines) + "\n"


def _print_next(name: str, file: Path, words: str, store: str) -> None:
    objects = (
        "stored commands and a collection in schema/rec/"
        if store == Store.REC
        else "a table and procedures in schema/rel/"
    )
    click.echo(f"wrote {file}; next:")
    click.echo("  1. look through it: fields, limits, and a [fetch.…] for each question")
    click.echo(f"  2. the DBA adds {objects}: {words}_create, {words}_update, {words}_delete, …")
    click.echo("  3. beds schema apply        migrate, grant, and check the template against the objects")
    click.echo("  4. beds node restart        workers read templates at their start")
    click.echo(f"  5. beds template show {name} --live")
