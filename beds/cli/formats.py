"""The records of fetches as a file: one JSON object per line, or CSV."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from beds.cli.output import json_text
from beds.domain.reply import Record
from beds.wire import codec

END = "\r\n"


class Ndjson:
    """One record as JSON per line."""

    def write(self, records: Iterable[Record]) -> None:
        for record in records:
            click.echo(json_text(record))


class Csv:
    """Records as CSV, as RFC 4180 has it, with a header. Null is an empty field; objects and arrays are JSON."""

    def __init__(self) -> None:
        self._columns: Sequence[str] = ()

    def write(self, records: Sequence[Record]) -> None:
        """Raises UsageError: a record has a column that those of the first page have not."""
        if not self._columns and records:
            self._columns = list(dict.fromkeys(name for record in records for name in record))
            self._line({name: name for name in self._columns})
        for record in records:
            if surplus := record.keys() - set(self._columns):
                raise click.UsageError(
                    f"a record has the column {min(surplus)}, which those before have not: use --ndjson"
                )
            self._line(record)

    def _line(self, record: Mapping[str, Any]) -> None:
        line = io.StringIO()
        # A field is quoted if it has one of the terminator's characters.
        csv.writer(line, lineterminator=END).writerow([_text(record.get(name)) for name in self._columns])
        text = line.getvalue().removesuffix(END)
        if sys.stdout.isatty():
            text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
        click.echo(text, color=True)  # as it is: click would remove escape sequences from the data


def _text(value: Any) -> str:
    plain = codec.plain(value)
    if plain is None:
        return ""
    return plain if isinstance(plain, str) else json_text(plain)
