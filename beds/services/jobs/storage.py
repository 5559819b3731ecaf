"""Where the warehouse's files are: a folder or an object store, over fsspec."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import fsspec

from beds.config.sections import Cold
from beds.domain.reply import Record
from beds.errors import BedsError, ConfigurationError, FileDamaged, StoreUnavailable

MANIFEST = "manifest.json"
_PERMANENT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


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

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Translate the errors of files and of fsspec's file systems.

        Raises:
            ConfigurationError: it cannot work: a folder that may not be written, a name that is too long.
            StoreUnavailable: it may work later.
        """
        try:
            yield
        except (BedsError, FileNotFoundError):
            raise
        except OSError as error:
            if error.errno in _PERMANENT:
                hint = "let [cold.<name>] url name a folder that the workers may write to"
                raise ConfigurationError(f"a file cannot be used: {error.strerror}", hint=hint) from None
            raise _away(path, error.strerror or type(error).__name__) from None
        except Exception as error:  # noqa: BLE001 — each of fsspec's file systems has errors of its own
            raise _away(path, type(error).__name__) from None

    def write(self, path: str, data: bytes) -> None:
        """Write a file: it is there whole, or not at all. Raises StoreUnavailable."""
        whole = f"{self._folder}/{path}"
        with self._translated(path):
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

    def read(self, path: str) -> bytes:
        """Raises FileDamaged: there is no such file. StoreUnavailable: it cannot be read."""
        with self._translated(path):
            try:
                return bytes(self._system.cat_file(f"{self._folder}/{path}"))
            except FileNotFoundError:
                raise FileDamaged(f"the file {path} is gone", detail={"file": path}) from None

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
        with self._translated(path), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(f"{self._folder}/{path}")

    def unlisted(self, name: str, listed: Sequence[str]) -> list[str]:
        """The files whose names begin so and that are not listed, the latest first: what killed chunks left behind."""
        with self._translated(name):
            found = [str(path) for path in self._system.glob(f"{glob.escape(self._folder)}/**/{name}-*.parquet")]
            latest = sorted(found, key=self._system.modified, reverse=True)
        paths = (path.rpartition(f"{self._folder}/")[2] for path in latest)
        return [path for path in paths if path not in listed]

    def write_manifest(self, template: str, columns: Sequence[Mapping[str, str]], files: Sequence[Record]) -> None:
        """Write the list of all files in use. It is written last, so its readers find each file that it lists."""
        listed = [
            {name: file.get(name) for name in ("rows", "bytes", "sha256", "content", "first", "last")}
            | {"path": file["id"], "job": file["guid"]}
            for file in files
        ]
        manifest = {"version": 1, "template": template, "columns": list(columns), "files": listed}
        self.write(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def _away(path: str, why: str) -> StoreUnavailable:
    return StoreUnavailable(f"the file {path} cannot be used: {why}")
