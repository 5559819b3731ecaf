"""Where the warehouse's files are: a folder or an object store, over fsspec."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import fsspec

from beds.config.sections import Cold
from beds.domain.reply import Record
from beds.errors import ConfigurationError, FileDamaged, StoreUnavailable

MANIFEST = "manifest.json"


class Storage:
    """The files of one rule, below a folder of its own.

    Args:
        config: the place.
        root: the folder of beds.toml.
        rule: the rule's name.
    """

    def __init__(self, config: Cold, root: Path, rule: str) -> None:
        url = config.url if "://" in config.url else f"file://{(root / config.url).resolve()}"
        options = {name: value.get_secret_value() for name, value in config.options.items()}
        try:
            self._system, folder = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            hint = "install the package that it names"
            raise ConfigurationError(f"[cold] url {config.url}: {error}", hint=hint) from None
        self._folder = f"{folder.rstrip('/')}/{rule}"
        self._is_local = url.startswith("file://")

    def write(self, path: str, data: bytes) -> None:
        """Write a file: it is there whole, or not at all. Raises StoreUnavailable."""
        whole = f"{self._folder}/{path}"
        try:
            if not self._is_local:
                self._system.pipe_file(whole, data)
                return
            place = Path(whole)
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
            folder = os.open(place.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _away(path, error) from None

    def read(self, path: str) -> bytes:
        """Raises FileDamaged: there is no such file. StoreUnavailable: it cannot be read."""
        try:
            return bytes(self._system.cat_file(f"{self._folder}/{path}"))
        except FileNotFoundError:
            raise FileDamaged(f"the file {path} is gone", detail={"file": path}) from None
        except OSError as error:
            raise _away(path, error) from None

    def read_listed(self, file: Record) -> bytes:
        """A listed file's bytes. Raises FileDamaged: they are not those that were written."""
        data = self.read(file["id"])
        if len(data) != file["bytes"] or hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise FileDamaged(
                f"the file {file['id']} is not what was written: {len(data):,} bytes, and another SHA-256",
                detail={"file": file["id"]},
            )
        return data

    def remove(self, path: str) -> None:
        """Delete a file; one that is gone does no harm."""
        try:
            self._system.rm_file(f"{self._folder}/{path}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise _away(path, error) from None

    def unlisted(self, guid: str, listed: Sequence[str]) -> list[str]:
        """The files of a job that are in the folder and not listed: what a killed chunk left behind."""
        found = self._system.glob(f"{self._folder}/**/{guid}-*.parquet")
        return sorted({str(path).rpartition(f"{self._folder}/")[2] for path in found} - set(listed))

    def write_manifest(self, template: str, columns: Sequence[Mapping[str, str]], files: Sequence[Record]) -> None:
        """Write the list of all files in use. It is written last, so whoever reads it finds what it lists."""
        listed = [
            {name: file.get(name) for name in ("rows", "bytes", "sha256", "content", "first", "last")}
            | {"path": file["id"], "job": file["guid"]}
            for file in files
        ]
        manifest = {"version": 1, "template": template, "columns": list(columns), "files": listed}
        self.write(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def _away(path: str, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(f"the file {path} cannot be used: {error.strerror or type(error).__name__}")
