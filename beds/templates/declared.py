"""The parameters of the DBA's objects, as the files in `schema/` declare them: names and defaults, without a database.

Workers read the signatures from the databases, which decide. The files are what tools have that run without servers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beds.domain.event import Store
from beds.templates.fields import FIELD_TYPES
from beds.templates.named_object import Param

Declared = Mapping[tuple[Store, str], tuple[Param, ...]]
"""The parameters of each object, by store and name."""

_ANY = frozenset(FIELD_TYPES)
_PREFIX = "p_"
_LIMIT = Param("limit", frozenset({"integer"}), "rows", whole=True)
_QUOTED_OR_COMMENT = re.compile(
    r"""('(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")|--(?=\s)[^\n]*|\#[^\n]*|/\*(?!!|M!).*?\*/""", re.DOTALL
)
_NAME = r"(?:(?:`[^`]+`|\w+)\.)?(`[^`]+`|\w+)"
_ROUTINE = re.compile(
    rf"\bCREATE\s+(?:OR\s+REPLACE\s+)?(?:DEFINER\s*=\s*\S+\s+)?(?:AGGREGATE\s+)?(?:PROCEDURE|FUNCTION)\s+"
    rf"(?:IF\s+NOT\s+EXISTS\s+)?{_NAME}\s*\(",
    re.IGNORECASE,
)
_VIEW = re.compile(
    rf"\bCREATE\s+(?:OR\s+REPLACE\s+)?(?:ALGORITHM\s*=\s*\w+\s+)?(?:DEFINER\s*=\s*\S+\s+)?(?:SQL\s+SECURITY\s+\w+\s+)?"
    rf"VIEW\s+(?:IF\s+NOT\s+EXISTS\s+)?{_NAME}",
    re.IGNORECASE,
)
_PARAMETER = re.compile(r"\s*(?:(IN|OUT|INOUT)\s+)?(`[^`]+`|\w+)\s+(.*)", re.IGNORECASE | re.DOTALL)
_VERSION = re.compile(r"V(\d+)__")
_TAKES_LIMIT = re.compile(r'"\$?limit": \{"\$param": "limit"\}')


def declared_objects(schema_path: Path) -> Declared:
    """The objects that the files of a schema make. A file that cannot be read declares none."""
    found = {(Store.REL, name): params for name, params in _of_tables(schema_path / "rel")}
    return found | {(Store.REC, name): params for name, params in _of_documents(schema_path / "rec")}


def _of_tables(folder: Path) -> Iterator[tuple[str, tuple[Param, ...]]]:
    """The routines and views of the SQL files, in the order in which the files are applied: the last one counts."""
    for file in sorted(folder.glob("*.sql"), key=_place):
        # Texts are emptied, so that no comma or parenthesis in them counts.
        text = _QUOTED_OR_COMMENT.sub(lambda part: "''" if part[1] else " ", _read(file))
        for routine in _ROUTINE.finditer(text):
            yield routine[1].strip("`"), tuple(filter(None, map(_parameter, _parts(text, routine.end()))))
        for view in _VIEW.finditer(text):
            yield view[1].strip("`"), (_LIMIT,)


def _place(file: Path) -> tuple[bool, int, str]:
    version = _VERSION.match(file.name)
    return version is None, int(version[1]) if version else 0, file.name


def _parts(text: str, start: int) -> list[str]:
    """The parameters of a routine, whose opening parenthesis ends before `start`."""
    depth, parts = 0, [""]
    for letter in text[start:]:
        if letter == ")" and depth == 0:
            break
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _parameter(text: str) -> Param | None:
    found = _PARAMETER.fullmatch(text)
    if found is None:
        return None
    modes = {"out": "out", "inout": "inout"}
    mode: Any = modes.get((found[1] or "").lower(), "in")
    return Param(found[2].strip("`").removeprefix(_PREFIX), _ANY, " ".join(found[3].split()).lower(), mode)


def _of_documents(folder: Path) -> Iterator[tuple[str, tuple[Param, ...]]]:
    for file in sorted(folder.glob("*/*.json")):
        try:
            source = json.loads(_read(file))
            if file.name == "collection.json" or not isinstance(source, dict):
                continue
            command = json.dumps([source.get("command"), source.get("pipeline")])
            params = {"limit": {"bsonType": "int"}} if source.get("kind") == "view" else {}
            params |= source.get("params") or {}
            takes_limit = source.get("kind") == "view" or _TAKES_LIMIT.search(command)
            yield (
                str(source.get("name")),
                tuple(
                    _stored(name, spec, whole=name == "limit" and bool(takes_limit)) for name, spec in params.items()
                ),
            )
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue  # `beds schema check` names what is wrong with it


def _stored(name: str, spec: Mapping[str, Any], *, whole: bool) -> Param:
    declared = spec.get("bsonType")
    types = [declared] if isinstance(declared, str) else list(declared or [])
    return Param(name, _ANY, " or ".join(types), optional="null" in types or "default" in spec, whole=whole)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig") if file.is_file() else ""
    except (OSError, UnicodeDecodeError):
        return ""
