"""Loads a dump of a MariaDB or MySQL database into the stack's MariaDB."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from beds.errors import StackError
from beds.stack.stack import Stack

_CHUNK = 1 << 20
# The stack has one database, which the shell has chosen.
_LEFT_OUT = re.compile(
    rb"\s*(?:/\*!\d+\s*)?(?:(?:CREATE|DROP)\s+(?:DATABASE|SCHEMA)\b[^;]*;\s*\Z|USE\s+(?:`[^`]+`|[\w$]+)\s*;\s*\Z"
    rb"|SET\s+@@(?:GLOBAL|SESSION)\.(?:GTID_PURGED|SQL_LOG_BIN)|SET\s+@MYSQLDUMP_TEMP_LOG_BIN)",
    re.IGNORECASE,
)
_CHOSEN = re.compile(rb"\s*USE\s+`?([^`;\s]+)`?\s*;", re.IGNORECASE)
_DELIMITER = re.compile(rb"DELIMITER\s+(\S+)", re.IGNORECASE)
_TABLE = re.compile(rb"\s*CREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?`?([^`\s(]+)", re.IGNORECASE)
_ROWS = re.compile(rb"\s*(?:/\*!\d+\s*)?(?:INSERT|REPLACE)\b", re.IGNORECASE)
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_TEXT = rb"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.|\"\")*\""
_DEFINES = re.compile(rb"\s*(?:/\*!\d+\s*)?(?:CREATE|ALTER|DEFINER)\b", re.IGNORECASE)
_DEFINER = re.compile(rb"DEFINER\s*=\s*(?:`[^`]*`|'[^']*'|\w+)\s*@\s*(?:`[^`]*`|'[^']*'|[\w.%]+)", re.IGNORECASE)
_SANDBOX = b"enable the sandbox mode"


def load_dump(stack: Stack, file: Path, advance: Callable[[int], None] = lambda _: None) -> list[str]:
    """Send a dump to MariaDB's shell, as the DBA.

    Databases that the dump creates or chooses, their names before tables, and the definers of its views and routines
    are left out: the stack has one database, and none of the users of the dumped server.

    Args:
        stack: whose servers run.
        file: as mariadb-dump or mysqldump writes it; `.gz` is unpacked.
        advance: called with the number of further bytes of the file that were sent.

    Returns:
        The names of the tables that the database has afterwards.

    Raises:
        StackError: the file is empty or cannot be read, or MariaDB refuses a statement; those before it were executed.
    """
    if file.is_file() and not file.stat().st_size:
        raise StackError(f"{file} is empty", hint="name a dump")
    command, environment = stack.sql_shell("dba")
    with tempfile.TemporaryFile() as said, _opened(file) as (dump, raw):
        shell = subprocess.Popen(
            [*command, "--binary-mode", "--default-character-set=utf8mb4"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, **environment},
        )
        assert shell.stdin is not None
        sent = 0
        try:
            for part in _adapted(dump):
                shell.stdin.write(part)
                if (now := raw.tell()) - sent > _CHUNK:
                    advance(now - sent)
                    sent = now
            shell.stdin.flush()
        except BrokenPipeError:
            pass  # it has said why
        except (OSError, EOFError, zlib.error) as error:
            shell.kill()
            raise StackError(
                f"{file} cannot be read: {error}", hint="name a dump, or a dump packed with gzip"
            ) from None
        finally:
            with contextlib.suppress(BrokenPipeError):
                shell.stdin.close()
            code = shell.wait()
        advance(raw.tell() - sent)
        if code:
            said.seek(0)
            raise StackError(
                f"MariaDB refuses {file.name}: {_error(said.read())}",
                detail={"file": str(file)},
                hint="what came before it was executed; `beds stack down --wipe` starts anew",
            )
    rows = stack.mariadb.ask(
        "SELECT TABLE_NAME AS name FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'beds' AND TABLE_TYPE <> 'VIEW'"
    )
    return sorted(str(row["name"]) for row in rows if not str(row["name"]).startswith("beds_"))


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A dump, and the file that it is read from, which may be packed."""
    try:
        raw = file.open("rb")
    except OSError as error:
        raise StackError(f"{file} cannot be read: {error.strerror}", hint="name a dump") from None
    with raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        yield (cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_packed else raw), raw


def _adapted(dump: BinaryIO) -> Iterator[bytes]:
    """The dump's lines without what belongs to its own server. Rows stay as they are.

    Raises:
        StackError: the dump holds several databases.
    """
    chosen, tables = b"", set()
    is_data = is_quoted = is_body = is_left_out = False
    for line in dump:
        if found := _DELIMITER.match(line):
            is_body = found[1] != b";"
        is_data = is_data or (not is_body and _ROWS.match(line) is not None)
        if is_left_out:
            is_left_out = not line.rstrip().endswith(b";")
        elif is_data:
            yield line
            is_quoted ^= bool(_ESCAPED.sub(b"", line).count(b"'") % 2)
            is_data = is_quoted or not line.rstrip().endswith(b";")
        elif _LEFT_OUT.match(line) or _SANDBOX in line[:100]:
            if found := _CHOSEN.match(line):
                if chosen not in (b"", found[1]):
                    both = b" and ".join((chosen, found[1])).decode(errors="replace")
                    raise StackError(
                        f"the dump holds the databases {both}, the stack has one", hint="load the dump of one database"
                    )
                chosen = found[1]
            is_left_out = not line.rstrip().endswith((b";", b"*/"))  # a GTID set may take several lines
            yield b"\n"
        else:
            if found := _TABLE.match(line):
                tables.add(found[1])
            line = _DEFINER.sub(b"", line) if _DEFINES.match(line) else line
            yield _without_database(line, chosen) if chosen and chosen not in tables else line


def _without_database(line: bytes, name: bytes) -> bytes:
    """A line without the database's name before other names; text in quotes stays."""
    named = rb"(?<![\w`.$])`?" + re.escape(name) + rb"`?\s*\.\s*(?=[`\w])"
    return re.sub(rb"(" + _TEXT + rb")|" + named, lambda found: found[1] or b"", line)


def _error(said: bytes) -> str:
    """What MariaDB's shell says of a statement, which it quotes over several lines."""
    text = " ".join(said.decode(errors="replace").split())
    return text[max(0, text.rfind("ERROR ")) :] or "it gives no reason"
