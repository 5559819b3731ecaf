"""Sakila, MySQL's sample database, from the source package of Debian that has it among its tests.

Its licence is New BSD, and stands at the top of both files. No file of it is in this repository.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

PACKAGE = "percona-toolkit"
ARCHIVE = "percona-toolkit_3.2.1.orig.tar.gz"
SHA256 = "92da0d3712533205f283515ff47ce68521fc2de20989c45b4c65a9743d0f7487"
"""Of 15,521,123 bytes, as in the package's .dsc."""
FOLDER = "percona-toolkit-3.2.1/sandbox/sakila-db"
FILES = ("sakila-schema.sql", "sakila-data.sql")
HELPER = "/usr/lib/apt/apt-helper"
"""Downloads as apt does: from the machine's own mirror, with its proxy."""
RETRIES = 3
SILENCE_SECONDS = 20
SECONDS = 120
"""For one mirror, with all retries."""


class Unavailable(Exception):
    """No mirror of Debian or Ubuntu gives the package."""


@functools.cache
def statements() -> tuple[bytes, ...]:
    """Two texts of several statements each, the schema and the data, for a connection that has chosen its database.

    Skips the test where the package cannot be had, and fails under CI=true.
    """
    try:
        return tuple(_without_client_commands(text) for text in _files())
    except Unavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def _files() -> list[bytes]:
    with tempfile.TemporaryDirectory(prefix="sakila-") as folder:
        archive = Path(folder) / ARCHIVE
        _download(archive)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        assert digest == SHA256, f"{ARCHIVE} is another file: {digest}"
        with tarfile.open(archive) as tar:
            return [_text(tar, f"{FOLDER}/{name}") for name in FILES]


def _download(archive: Path) -> None:
    options = [f"-oAcquire::Retries={RETRIES}", f"-oAcquire::http::Timeout={SILENCE_SECONDS}"]
    failures = []
    for folder in _mirrors():
        url = f"{folder}/{ARCHIVE}"
        # As root, apt would download as a user who cannot write to this folder.
        command = [HELPER, *options, "-oAPT::Sandbox::User=root", "download-file", url, str(archive)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            failures.append(f"{url}: not within {SECONDS} s")
            continue
        if done.returncode == 0:
            return
        failures.append(f"{url}: {done.stderr.strip()}")
    raise Unavailable(f"no mirror gives {ARCHIVE}: {'; '.join(failures)}")


def _mirrors() -> list[str]:
    """The folder of the package on each mirror that apt uses: in Debian's `main`, in Ubuntu's `universe`."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"Sakila comes from a package of Debian, and apt does not answer: {error}") from None
    pairs = dict.fromkeys(tuple(line.split()) for line in done.stdout.splitlines())
    found = [(uri, part) for uri, part in pairs if part in ("main", "universe")]
    return [f"{uri.rstrip('/')}/pool/{part}/{PACKAGE[0]}/{PACKAGE}" for uri, part in found]


def _text(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None, f"{name} is no file"
    return file.read()


def _without_client_commands(text: bytes) -> bytes:
    """The same statements for a server, in its current database: without DELIMITER and the database's name.

    In bytes, since the data has a picture.
    """
    text = re.sub(rb"^DELIMITER .*\n", b"", text, flags=re.MULTILINE)
    text = re.sub(rb"^(DROP SCHEMA|CREATE SCHEMA|USE) .*\n", b"", text, flags=re.MULTILINE)
    text = re.sub(rb"\bEND ?(;;|//|\$\$)", b"END;", text)
    return re.sub(rb"\b(FROM|JOIN) sakila\.", rb"\1 ", text)
