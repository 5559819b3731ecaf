"""The text of a drafted template."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from beds.templates.template import Template

MAX_RECORDS = 10_000
"""The most records of a fetch that does not page, and of a job's page."""


class CannotDraft(Exception):
    """A table, collection, view or routine that cannot be drafted. Its text is the reason."""


@dataclass(frozen=True)
class FieldDraft:
    """One field, or one argument of a fetch.

    Args:
        type: of the field.
        keys: its other keys.
        remarks: comments for the template's reader.
    """

    type: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class FetchDraft:
    """One fetch; `args` are its arguments that are no fields."""

    object: str
    cursor: Sequence[str] = ()
    args: Mapping[str, FieldDraft] = field(default_factory=dict)
    optional: Sequence[str] = ()
    results: Sequence[str] = ()
    max_limit: int | None = None
    range: bool = False


@dataclass(frozen=True)
class TemplateDraft:
    """A template before it is written.

    Args:
        name, store, key, description: of `[template]`.
        source: what it was drafted from, for its first line.
        writes: objects by table: create, create_many, update, delete, load, remove_many.
        fetches: by name.
        by_keys, estimate: what jobs call; empty where they cannot.
        fields: by name.
        item: the fetch of one record, if its name does not say so.
        remarks: comments below the first line.
    """

    name: str
    store: str
    key: Sequence[str]
    source: str
    description: str = ""
    writes: Mapping[str, str] = field(default_factory=dict)
    fetches: Mapping[str, FetchDraft] = field(default_factory=dict)
    by_keys: str = ""
    estimate: str = ""
    fields: Mapping[str, FieldDraft] = field(default_factory=dict)
    item: str = ""
    remarks: Sequence[str] = ()

    def text(self) -> str:
        """The TOML text."""
        return "\n".join(self._lines()) + "\n"

    def problem(self) -> str:
        """Why BEDS would refuse it; empty if it is valid."""
        try:
            Template.model_validate(tomllib.loads(self.text(), parse_float=Decimal))
        except tomllib.TOMLDecodeError as failed:
            return f"its names or comments cannot be written: {failed}"
        except ValidationError as failed:
            return "; ".join(str(each["msg"]) for each in failed.errors(include_url=False, include_input=False))
        return ""

    def _lines(self) -> Iterator[str]:
        yield f"# Drafted by `beds schema draft` from {self.source}: read it, and change what you like."
        yield from (f"# {remark}" for remark in self.remarks)
        yield "[template]"
        yield f"name = {_toml(self.name)}"
        yield f"store = {_toml(self.store)}"
        yield f"key = {_toml(self.key[0] if len(self.key) == 1 else list(self.key))}"
        if self.item:
            yield f"item = {_toml(self.item)}"
        if self.description:
            yield f"description = {_toml(self.description)}"
        yield ""
        for table, name in self.writes.items():
            yield f"[{table}]"
            yield f"object = {_toml(name)}"
        for name, fetch in self.fetches.items():
            yield f"[fetch.{name}]"
            yield from _fetch_lines(fetch)
        for table, name in (("by_keys", self.by_keys), ("estimate", self.estimate)):
            if name:
                yield f"[{table}]"
                yield f"object = {_toml(name)}"
        yield ""
        for name, each in self.fields.items():
            yield f"[fields.{name}]"
            yield from (f"# {remark}" for remark in each.remarks)
            yield from (f"{key} = {_toml(value)}" for key, value in {"type": each.type, **each.keys}.items())


def _fetch_lines(fetch: FetchDraft) -> Iterator[str]:
    yield f"object = {_toml(fetch.object)}"
    for key in ("cursor", "optional", "results"):
        if value := getattr(fetch, key):
            yield f"{key} = {_toml(list(value))}"
    if fetch.range:
        yield "range = true"
    if fetch.max_limit:
        yield f"max_limit = {fetch.max_limit}"
    for name, each in fetch.args.items():
        keys = ", ".join(f"{key} = {_toml(value)}" for key, value in {"type": each.type, **each.keys}.items())
        yield f"args.{name} = {{{keys}}}"


def _toml(value: Any) -> str:
    """A value in TOML, of which JSON's texts, numbers and lists are a part."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def one_line(text: str) -> str:
    """A comment of the DBA as one line, without control characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())
