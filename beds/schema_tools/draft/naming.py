"""Names of fields, templates and objects, made from the DBA's names."""

from __future__ import annotations

import hashlib
import re
import unicodedata

LONGEST_FIELD = 54
"""A parameter `p_before_<field>` and a name `<field>_is_given` have at most 64 characters."""
_LONGEST_STEM = 40
"""Leaves room for an operation's name in the 64 characters of a procedure's."""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def field_name(column: str) -> str:
    """A column's name as a field's: the same, if it may be one."""
    return shortened(_plain(column, "f"), LONGEST_FIELD)


def stem(name: str) -> str:
    """A table's or collection's name as the beginning of objects' and files' names."""
    return shortened(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", _plain(name, "t")).lower(), _LONGEST_STEM)


def template_name(name: str) -> str:
    """`film_actor` as `FilmActor`."""
    words = re.split(r"_+", _plain(name, "T"))
    return shortened("".join(word[:1].upper() + word[1:] for word in words if word), LONGEST_FIELD)


def is_plain(name: str) -> bool:
    """Whether a template may name an object so."""
    return len(name) <= 64 and _PLAIN.fullmatch(name) is not None


def _plain(name: str, prefix: str) -> str:
    if _PLAIN.fullmatch(name):
        return name
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9]+", "_", ascii_only).strip("_")
    if not plain:
        plain = f"{prefix}_{_digest(name)}"
    return plain if plain[0].isalpha() else f"{prefix}_{plain}"


def shortened(name: str, most: int) -> str:
    """A name of at most `most` characters; a longer one ends with a digest."""
    return name if len(name) <= most else f"{name[: most - 7]}_{_digest(name)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:6]
