"""MariaDB's types: which values each type stores unchanged.

A type may change a value even in strict mode. CHAR drops trailing spaces, BINARY adds zeros, ENUM takes digits as an
index, YEAR guesses a century. FLOAT and DECIMAL round, TIME and DATETIME cut fractions. Each value is therefore checked
against its type before the call. https://mariadb.com/kb/en/data-types/
"""

from __future__ import annotations

import base64
import ipaddress
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID

from beds.domain.identity import ObjectId
from beds.errors import OutOfRange, TooLong, WrongType
from beds.templates.fields import check_decimal, fits

_INTEGER_BITS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
_TEXT_BYTES = {"tinytext": 2**8 - 1, "text": 2**16 - 1, "mediumtext": 2**24 - 1, "longtext": 2**32 - 1}
_BLOB_BYTES = {"tinyblob": 2**8 - 1, "blob": 2**16 - 1, "mediumblob": 2**24 - 1, "longblob": 2**32 - 1}
_TEXT_LIKE = frozenset({"char", "varchar", *_TEXT_BYTES})
_GEOMETRY = ("geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon",
             "geometrycollection")  # fmt: skip
_CARRIES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_INTEGER_BITS, ("integer",)),
    "tinyint": ("integer", "boolean"),
    "bit": ("boolean", "integer"),
    "year": ("integer",),
    "decimal": ("decimal", "integer"),
    "float": ("number",),
    "double": ("number",),
    "char": ("string", "uuid", "object_id"),
    "varchar": ("string", "uuid", "object_id"),
    **dict.fromkeys(_TEXT_BYTES, ("string",)),
    "longtext": ("string", "object", "array"),  # JSON is an alias of LONGTEXT
    "enum": ("string",),
    "set": ("string", "array"),
    "uuid": ("uuid",),
    "inet4": ("string",),
    "inet6": ("string",),
    "binary": ("bytes", "uuid"),
    "varbinary": ("bytes", "uuid"),
    **dict.fromkeys(_BLOB_BYTES, ("bytes",)),
    "vector": ("bytes",),
    **dict.fromkeys(_GEOMETRY, ("bytes",)),
    "datetime": ("datetime",),
    "timestamp": ("datetime",),
    "date": ("date",),
    "time": ("time", "duration"),
}
_DECLARED = re.compile(r"(\w+)\s*(?:\((.*)\))?(.*)", re.DOTALL)
_MEMBER = re.compile(r"'((?:[^']|'')*)'")
LONGEST_TIME = timedelta(hours=838, minutes=59, seconds=59, microseconds=999_999)
FLOAT_DIGITS, FLOAT_MAX, FLOAT_MIN = 6, 3.402823466e38, 1.175494351e-38
"""MariaDB returns a FLOAT with six digits, so a value with more digits comes back changed."""


@dataclass(frozen=True, slots=True)
class SqlType:
    """One declared type, such as `decimal(10,2) unsigned`.

    Args:
        declared: as MariaDB writes it.
        name: without arguments.
        numbers: the arguments of `decimal(10,2)`.
        members: the members of an ENUM or SET.
        unsigned: whether it takes no negative numbers.
    """

    declared: str
    name: str
    numbers: tuple[int, ...] = ()
    members: tuple[str, ...] = ()
    unsigned: bool = False

    @classmethod
    def parse(cls, declared: str) -> SqlType:
        """The type that a `DTD_IDENTIFIER`, a `COLUMN_TYPE` or a JSON_TABLE column declares."""
        found = _DECLARED.match(declared.strip())
        assert found is not None
        name, inside, more = found[1].lower(), found[2] or "", found[3].lower()
        name = _SYNONYMS.get(name, name)
        if name in ("enum", "set"):
            members = tuple(m.replace("''", "'").replace("\\\\", "\\") for m in _MEMBER.findall(inside))
            return cls(declared, name, members=members)
        numbers = tuple(int(n) for n in re.findall(r"\d+", inside))
        return cls(declared, name, numbers, unsigned="unsigned" in more or "zerofill" in more)

    @property
    def carries(self) -> frozenset[str]:
        """The field types that it can store; empty for a type that BEDS does not support."""
        return frozenset(_CARRIES.get(self.name, ()))

    @property
    def max_length(self) -> int | None:
        """Its limit in characters or bytes, to compare with a template's `max_length`; None if it has none."""
        if self.name in ("char", "varchar", "binary", "varbinary"):
            return self._size
        return _TEXT_BYTES.get(self.name) or _BLOB_BYTES.get(self.name)

    @property
    def _size(self) -> int:
        return self.numbers[0] if self.numbers else 1

    @property
    def _fraction(self) -> int:
        return self.numbers[0] if self.numbers else 0

    @property
    def _finest(self) -> int:
        """The microseconds of its finest step."""
        return int(10 ** (6 - self._fraction))

    def check(self, field: str, value: Any) -> None:
        """Refuse a value that the type would change.

        Raises:
            OutOfRange, TooLong, WrongType: names the field.
        """
        value = self._as_carried(field, value)
        if value is None:
            return
        match self.name:
            case "tinyint" | "smallint" | "mediumint" | "int" | "bigint":
                if isinstance(value, int):
                    self._check_integer(field, value, _INTEGER_BITS[self.name])
            case "bit":
                if not 0 <= int(value) < 2**self._size:
                    self._beyond(field)
            case "year":
                if value != 0 and not 1901 <= value <= 2155:
                    self._refuse(field, "is no year that YEAR keeps (1901 to 2155, or 0)")
            case "decimal":
                digits, scale = (*self.numbers, 10, 0)[:2] if len(self.numbers) != 1 else (self.numbers[0], 0)
                if self.unsigned and value < 0:
                    self._beyond(field)
                check_decimal(field, Decimal(value), digits, scale)
            case "float" | "double":
                self._check_float(field, value)
            case "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext":
                self._check_text(field, value)
            case "binary":
                raw = _bytes_of(value)
                if raw is not None and len(raw) != self._size:
                    if len(raw) > self._size:
                        self._too_long(field, len(raw), self._size, "bytes")
                    self._refuse(field, f"has {len(raw)} bytes; {self.declared} would add zeros")
            case "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob":
                most = self._size if self.name == "varbinary" else _BLOB_BYTES[self.name]
                raw = _bytes_of(value)
                if raw is not None and len(raw) > most:
                    self._too_long(field, len(raw), most, "bytes")
            case "vector":
                if isinstance(value, bytes) and len(value) != 4 * self._size:
                    self._refuse(field, f"has {len(value)} bytes; {self.declared} takes {4 * self._size}")
            case "enum":
                if value not in self.members:
                    self._refuse(field, f"is none of {', '.join(self.members)}", members=list(self.members))
            case "set":
                self._check_set(field, value)
            case "inet4" | "inet6":
                self._check_address(field, value)
            case "datetime" | "timestamp":
                if isinstance(value, datetime):
                    self._check_fraction(field, value.microsecond)
            case "time":
                self._check_time(field, value)

    def keeps_all(self, kind: type, values: Sequence[Any]) -> bool:
        """True if `check` accepts each of many values of one Python type; False leaves that open."""
        match self.name:
            case "tinyint" | "smallint" | "mediumint" | "int" | "bigint" if kind is int:
                least, most = self._integers(_INTEGER_BITS[self.name])
                return bool(min(values) >= least and max(values) <= most)
            case "varchar" if kind is str:
                return max(map(len, values)) <= self._size
            case "char" if kind is str:
                return max(map(len, values)) <= self._size and not any(value.endswith(" ") for value in values)
            case "tinytext" | "text" | "mediumtext" | "longtext" if kind is str:
                return max(map(len, values)) <= _TEXT_BYTES[self.name] // 4
            case "datetime" | "timestamp" if kind is datetime:
                return not any(value.microsecond % self._finest for value in values)
        return False

    def _as_carried(self, field: str, value: Any) -> Any:
        """The value to check: unchanged, or a number converted without loss. None if MariaDB converts or refuses it.

        Raises WrongType: the type would change the value.
        """
        if not self.carries or any(fits(kind, value) for kind in self.carries):
            return value
        numeric = {"integer", "number", "decimal", "boolean"} & self.carries
        if numeric and isinstance(value, (int, float, Decimal)):
            return self._as_number(field, value)
        if isinstance(value, (dict, list)):
            return None  # JSON text, in a type for text; strict mode refuses what is too long
        if self.name == "uuid" and isinstance(value, str):
            return self._as_uuid(field, value)
        if text_of(value) is not None and self.name in _TEXT_LIKE:
            return value
        if isinstance(value, bytes) or (isinstance(value, str) and self.name in (*_BLOB_BYTES, "binary", "varbinary")):
            return None
        raise WrongType(
            f"field {field} goes into {self.declared}, which would convert a {type(value).__name__}",
            detail=self._where(field),
            hint="give the template's field the type of its column",
        )

    def _as_number(self, field: str, value: float | Decimal) -> Any:
        exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if "decimal" in self.carries:
            return exact
        if "number" in self.carries:
            if Decimal(repr(float(value))) != exact:
                self._refuse(field, f"has more digits than {self.declared} keeps")
            return float(value)
        if exact != exact.to_integral_value():
            self._refuse(field, f"is no whole number, which {self.declared} would make of it")
        return int(exact)

    def _as_uuid(self, field: str, value: str) -> None:
        try:
            kept = str(UUID(value))
        except ValueError:
            raise WrongType(f"field {field} is no UUID", detail=self._where(field)) from None
        if kept != value:
            self._refuse(field, "is not in the form that MariaDB writes: lower case, with hyphens")

    def check_single(self, field: str, value: Any) -> None:
        """Refuse a number that a FLOAT parameter rounds before it reaches a wider column. Raises OutOfRange."""
        if isinstance(value, (int, float)) and struct.unpack("f", struct.pack("f", float(value)))[0] != value:
            self._refuse(
                field, f"is rounded by {self.declared} on its way into its column; declare the parameter DOUBLE"
            )

    def _check_integer(self, field: str, value: int, bits: int) -> None:
        least, most = self._integers(bits)
        if not least <= value <= most:
            self._beyond(field)

    def _integers(self, bits: int) -> tuple[int, int]:
        """The smallest and the largest integer."""
        return (0, 2**bits - 1) if self.unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    def _check_float(self, field: str, value: float) -> None:
        if float(value) != value:
            self._refuse(field, f"has more digits than {self.declared} keeps")
        if self.unsigned and value < 0:
            self._beyond(field)
        if len(self.numbers) == 2 and round(value, self.numbers[1]) != value:
            self._refuse(field, f"has more digits after the point than {self.declared} keeps")
        if self.name == "float":
            if abs(value) > FLOAT_MAX or 0 < abs(value) < FLOAT_MIN:
                self._beyond(field)
            if float(f"{value:.{FLOAT_DIGITS}g}") != value:
                self._refuse(field, f"has more than the {FLOAT_DIGITS} digits that FLOAT shows; use DOUBLE")

    def _check_text(self, field: str, value: Any) -> None:
        text = text_of(value)
        if text is None:
            return
        if self.name in ("char", "varchar"):
            if len(text) > self._size:
                self._too_long(field, len(text), self._size, "characters")
            if self.name == "char" and text.endswith(" "):
                self._refuse(field, "ends with a space, which CHAR drops; use VARCHAR")
        elif len(text) > _TEXT_BYTES[self.name] // 4 and len(text.encode()) > _TEXT_BYTES[self.name]:
            self._too_long(field, len(text.encode()), _TEXT_BYTES[self.name], "bytes")

    def _check_set(self, field: str, value: Any) -> None:
        given = value if isinstance(value, list) else value.split(",") if value else []
        if [member for member in self.members if member in given] != given:
            self._refuse(
                field,
                f"is no list of members in the order of {self.declared}, each once",
                members=list(self.members),
            )

    def _check_address(self, field: str, value: str) -> None:
        try:
            kept = _address_text(value, 4 if self.name == "inet4" else 6)
        except ValueError:
            raise WrongType(f"field {field} is no {self.name} address", detail=self._where(field)) from None
        if kept != value:
            self._refuse(field, "is not in the form that MariaDB writes: lower case, zeros shortened")

    def _check_time(self, field: str, value: Any) -> None:
        if isinstance(value, time):
            if value.tzinfo is not None:
                raise WrongType(f"field {field} has a zone, which TIME does not keep", detail=self._where(field))
            self._check_fraction(field, value.microsecond)
        elif isinstance(value, timedelta):
            if abs(value) > LONGEST_TIME:
                self._beyond(field)
            self._check_fraction(field, value.microseconds)

    def _check_fraction(self, field: str, microsecond: int) -> None:
        if microsecond % self._finest:
            raise OutOfRange(
                f"field {field} has a finer time than the {self._fraction} digits of a second the store keeps",
                detail=self._where(field),
                hint=f"round it to {self._fraction} digits, or let the DBA declare the column with more, such as (6)",
            )

    def _beyond(self, field: str) -> NoReturn:
        self._refuse(field, f"is beyond what {self.declared} holds")

    def _too_long(self, field: str, length: int, most: int, unit: str) -> NoReturn:
        raise TooLong(
            f"field {field} has {length} {unit}, the store takes {most}",
            detail=self._where(field) | {"max_length": most},
        )

    def _refuse(self, field: str, why: str, **more: Any) -> NoReturn:
        raise OutOfRange(f"field {field} {why}", detail=self._where(field) | more)

    def _where(self, field: str) -> dict[str, Any]:
        return {"field": field, "declared": self.declared}


_SYNONYMS = {
    "integer": "int", "bool": "tinyint", "boolean": "tinyint", "dec": "decimal", "numeric": "decimal",
    "fixed": "decimal", "real": "double", "character": "char", "json": "longtext", "int1": "tinyint",
    "int2": "smallint", "int3": "mediumint", "int4": "int", "int8": "bigint", "nchar": "char", "nvarchar": "varchar",
}  # fmt: skip


def text_of(value: Any) -> str | None:
    """The text that a character type stores for a value; None for a value that is not stored as text of its own."""
    if isinstance(value, str):
        return value
    if isinstance(value, (UUID, ObjectId)):
        return str(value)
    if isinstance(value, bytes):  # in a bulk, where JSON has no bytes
        return base64.b64encode(value).decode("ascii")
    return None


def _bytes_of(value: Any) -> bytes | None:
    if isinstance(value, UUID):
        return value.bytes
    return value if isinstance(value, bytes) else None


def _address_text(text: str, version: int) -> str:
    """An address in MariaDB's form. Raises ValueError."""
    if version == 4:
        return str(ipaddress.IPv4Address(text))
    address = ipaddress.IPv6Address(text)
    if address.ipv4_mapped is not None:
        return f"::ffff:{address.ipv4_mapped}"
    if 0xFFFF < int(address) <= 0xFFFF_FFFF:
        return f"::{ipaddress.IPv4Address(int(address))}"
    words = [f"{int(word, 16):x}" for word in address.exploded.split(":")]
    # Unlike RFC 5952, MariaDB shortens a single zero, too.
    start, length = max(((i, _zeros(words, i)) for i in range(len(words))), key=lambda run: (run[1], -run[0]))
    if not length:
        return ":".join(words)
    return f"{':'.join(words[:start])}::{':'.join(words[start + length :])}"


def _zeros(words: list[str], start: int) -> int:
    """The number of successive zero words from a position on."""
    return next((i for i, word in enumerate(words[start:]) if word != "0"), len(words) - start)
