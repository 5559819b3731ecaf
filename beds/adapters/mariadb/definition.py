"""Parses a routine's text: the columns that its parameters go into, and the keys that JSON_TABLE reads.

A parameter may be wider than its column, and MariaDB then truncates a value without an error. Only parameters that go
into a column unchanged are checked. The result of an expression is the DBA's choice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

STRICT = frozenset({"STRICT_ALL_TABLES", "STRICT_TRANS_TABLES"})
_STRING = r"'(?:[^'\\]|''|\\.)*'"
_STRING_RAW = r"'(?:[^']|'')*'"
_QUOTED = r"\"(?:[^\"\\]|\"\"|\\.)*\""
_COMMENTS = r"--(?=\s)[^\n]*|#[^\n]*|/\*.*?\*/"
NOT_CODE = re.compile(rf"{_STRING}|{_QUOTED}|{_COMMENTS}", re.DOTALL)
"""Quoted text and comments."""
_NAME = r"(?:`[^`]+`|\w+)"
_WRITES = re.compile(
    rf"\b(?:(?P<insert>INSERT|REPLACE)(?:\s+(?:LOW_PRIORITY|DELAYED|HIGH_PRIORITY|IGNORE))*(?:\s+INTO)?"
    rf"|UPDATE(?:\s+(?:LOW_PRIORITY|IGNORE))*)\s+(?:{_NAME}\s*\.\s*)?(?P<table>{_NAME})",
    re.IGNORECASE,
)
_READS = re.compile(rf"\b(?:FROM|JOIN)\s+(?:{_NAME}\s*\.\s*)?(?P<table>{_NAME})", re.IGNORECASE)
_NO_TABLE = frozenset({"select", "set", "into", "values", "key", "on", "of", "json_table", "dual"})
_MAY_WRITE = re.compile(r"\b(?:INSERT|REPLACE|UPDATE|DELETE|TRUNCATE|LOAD|CALL|EXECUTE|HANDLER)\b", re.IGNORECASE)
_PASSES_ON = re.compile(r"(?:COALESCE|IFNULL|NULLIF|FROM_BASE64|IF)\s*\(", re.IGNORECASE)
"""Functions that return an argument unchanged; of IF the second or third one."""
_ALIAS = re.compile(rf"\s+AS\s+{_NAME}\s*\Z", re.IGNORECASE)
_ASSIGNMENT = re.compile(rf"\s*(?:{_NAME}\s*\.\s*)?({_NAME})\s*=(.*)\Z", re.DOTALL)
_SET_ENDS = re.compile(r"\b(?:WHERE|ORDER\s+BY|LIMIT|RETURNING|ON\s+DUPLICATE\s+KEY\s+UPDATE)\b", re.IGNORECASE)
_TYPED_PATH = re.compile(
    rf"\s*({_NAME})\s+(.+?)\s+PATH\s+['\"]\$\.\"?(\w+)\"?([^'\"]*)['\"]", re.IGNORECASE | re.DOTALL
)
_NESTED_PATH = re.compile(r"\s*NESTED\s+(?:PATH\s+)?['\"]\$\.\"?(\w+)", re.IGNORECASE)
_CHARACTERS = re.compile(r"\s+(?:CHARACTER\s+SET|CHARSET|COLLATE)\s+\w+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Flow:
    """A parameter, or a column of JSON_TABLE, that goes into a table's column unchanged.

    Args:
        source: the parameter's or column's name, in lower case.
        table: the target table, as the routine writes it.
        column: the target column's name in lower case, or its position if the routine names no columns.
    """

    source: str
    table: str
    column: str | int


def stamp(sql_mode: str, text: str) -> str:
    """A digest of a definition."""
    return hashlib.sha256(f"{sql_mode}\0{text}".encode()).hexdigest()


def is_strict(sql_mode: str) -> bool:
    """True if a routine created in this mode refuses a value that does not fit, instead of truncating it."""
    return bool(STRICT & set(sql_mode.split(",")))


def code_of(text: str, sql_mode: str = "") -> str:
    """A routine's text with spaces in place of quoted text and comments, so that positions stay the same."""
    modes = set(sql_mode.split(","))
    string = _STRING_RAW if "NO_BACKSLASH_ESCAPES" in modes else _STRING
    if "ANSI_QUOTES" in modes:  # names may stand in double quotes
        text = re.sub(rf"({string})|\"([^\"]+)\"", lambda m: m[1] or f"`{m[2]}`", text)
    return re.sub(
        rf"(`(?:[^`]|``)*`)|{string}|{_QUOTED}|{_COMMENTS}", lambda m: m[1] or " " * len(m[0]), text, flags=re.DOTALL
    )


def target_tables(code: str) -> list[str]:
    """The tables that a routine writes to, in the order of their first mention."""
    return _tables(_WRITES, code)


def source_tables(code: str) -> list[str]:
    """The tables that a routine reads from."""
    return _tables(_READS, code)


def _tables(pattern: re.Pattern[str], code: str) -> list[str]:
    found = dict.fromkeys(_bare(m["table"]) for m in pattern.finditer(code))
    return [name for name in found if name.lower() not in _NO_TABLE]


def may_write(code: str) -> bool:
    """False if a routine has no statement that changes data, and executes none that is not in its text.

    A function that it calls may still write. Such a write fails in a read-only transaction, and a handler would hide
    the failure, so a routine with a handler counts as one that may write.
    """
    return _MAY_WRITE.search(code) is not None


def flows(code: str) -> list[Flow]:
    """The names that go into a column unchanged, in every INSERT, REPLACE and UPDATE of a routine."""
    found: list[Flow] = []
    for write in _WRITES.finditer(code):
        table = _bare(write["table"])
        if table.lower() in _NO_TABLE:
            continue
        statement = code[write.end() : _end_of(code, write.end())]
        if write["insert"]:
            found += _of_insert(table, statement)
        else:
            _, is_set, rest = _parted(statement, r"\bSET\b")
            found += _of_set(table, rest) if is_set else []
    return found


def _of_insert(table: str, statement: str) -> Iterator[Flow]:
    rest = statement.lstrip()
    columns: list[str] = []
    if rest.startswith("("):
        end = _closing(rest, 0)
        columns = [_bare(name.strip()).lower() for name in _split(rest[1:end])]
        rest = rest[end + 1 :].lstrip()
    head, is_update, updates = _parted(rest, r"\bON\s+DUPLICATE\s+KEY\s+UPDATE\b")
    if re.match(r"SET\b", head, re.IGNORECASE):
        yield from _of_set(table, head[3:])
    elif re.match(r"VALUES?\b", head, re.IGNORECASE):
        for row in _rows(head):
            yield from _pairs(table, columns, row)
    elif re.match(r"SELECT\b", head, re.IGNORECASE):
        listed = re.split(r"\bFROM\b|\bWHERE\b", head[6:], maxsplit=1, flags=re.IGNORECASE)[0]
        yield from _pairs(table, columns, _split(listed))
    if is_update:
        yield from _of_set(table, updates)


def _of_set(table: str, text: str) -> Iterator[Flow]:
    for assignment in _split(_SET_ENDS.split(text, maxsplit=1)[0]):
        if found := _ASSIGNMENT.match(assignment):
            for name in _handed_on(found[2]):
                yield Flow(name, table, _bare(found[1]).lower())


def _pairs(table: str, columns: Sequence[str], expressions: Sequence[str]) -> Iterator[Flow]:
    for place, expression in enumerate(expressions):
        for name in _handed_on(expression):
            if name == "*":
                yield Flow("*", table, "*")
            elif place < len(columns):
                yield Flow(name, table, columns[place])
            elif not columns:
                yield Flow(name, table, place)


def _handed_on(expression: str) -> Iterator[str]:
    """The names whose value an expression returns unchanged, in lower case."""
    bare = _ALIAS.sub("", expression).strip()
    if found := re.fullmatch(rf"(?:{_NAME}\s*\.\s*)?(`[^`]+`|[^\W\d]\w*|\*)", bare):
        yield _bare(found[1]).lower()
    elif (call := _PASSES_ON.match(bare)) and _closing(bare, call.end() - 1) == len(bare) - 1:
        arguments = _split(bare[call.end() : -1])
        for argument in arguments[1:] if bare[:2].upper() == "IF" and bare[2:3] in " (" else arguments:
            yield from _handed_on(argument)


def json_columns(text: str) -> tuple[Mapping[str, str], bool]:
    """The SQL type in which JSON_TABLE reads each key of a record; empty for a key that it reads in parts.

    Returns:
        The types by key, and whether the routine reads no other key.
    """
    code = re.sub(rf"({_STRING}|{_QUOTED})|{_COMMENTS}", lambda m: m[1] or " ", text, flags=re.DOTALL)
    found: dict[str, str] = {}
    complete = not re.search(r"\bJSON_(?:VALUE|EXTRACT|QUERY|UNQUOTE|COMPACT|LOOSE)\b", code, re.IGNORECASE)
    for columns in re.finditer(r"\bCOLUMNS\s*\(", code, re.IGNORECASE):
        before = code[: columns.start()]
        if re.search(r"\bNESTED\s+(?:PATH\s+)?['\"][^'\"]*['\"]\s*\Z", before, re.IGNORECASE):
            continue  # the columns of a nested path belong to parts of a record
        for column in _split(code[columns.end() : _closing(code, columns.end() - 1)]):
            if nested := _NESTED_PATH.match(column):
                found.setdefault(nested[1], "")
            elif typed := _TYPED_PATH.match(column):
                declared = _CHARACTERS.sub("", typed[2]).strip()
                found[typed[3]] = "" if typed[4] or declared.lower().startswith("exists") else declared
            elif not re.search(r"\bFOR\s+ORDINALITY\b", column, re.IGNORECASE):
                complete = False
    return found, complete and bool(found)


def called(text: str) -> Iterator[str]:
    """The procedures that a routine calls by name."""
    for found in re.finditer(rf"\bCALL\s+(?:{_NAME}\s*\.\s*)?({_NAME})", NOT_CODE.sub(" ", text), re.IGNORECASE):
        yield _bare(found[1])


def _bare(name: str) -> str:
    return name.strip("`")


def _end_of(code: str, start: int) -> int:
    """The end of the statement that contains `start`."""
    depth = 0
    for position in range(start, len(code)):
        if code[position] == "(":
            depth += 1
        elif code[position] == ")":
            depth -= 1
        elif code[position] == ";" and depth <= 0:
            return position
    return len(code)


def _closing(text: str, opening: int) -> int:
    """The position of the parenthesis that closes the one at `opening`, or the text's end. Quoted ones are skipped."""
    depth, quote = 0, ""
    for position in range(opening, len(text)):
        character = text[position]
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                return position
    return len(text)


def _split(text: str) -> list[str]:
    """The parts between the commas of the outermost level."""
    parts, start, depth, quote = [], 0, 0, ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _rows(text: str) -> Iterator[list[str]]:
    """The rows of VALUES (…), (…)."""
    position = text.find("(")
    while position >= 0:
        end = _closing(text, position)
        yield _split(text[position + 1 : end])
        following = re.match(r"\s*,\s*\(", text[end + 1 :])
        position = end + 1 + following.end() - 1 if following else -1


def _parted(text: str, pattern: str) -> tuple[str, bool, str]:
    found = re.search(pattern, text, re.IGNORECASE)
    return (text[: found.start()], True, text[found.end() :]) if found else (text, False, "")
