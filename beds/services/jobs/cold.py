"""Moves the records of a range into files, and back.

A chunk's files have names of their own for each attempt. The removal of the records from the source notes, in its own
transaction, which files hold them, so that of two attempts only one counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from typing import Any

from beds.adapters.bulk import BulkAdapter, Key
from beds.adapters.store import AlreadyDone
from beds.domain.clock import now
from beds.domain.job import Job, Tally
from beds.domain.reply import Record
from beds.errors import ConfigurationError, FileDamaged, JobError, TooLong
from beds.services.jobs.loading import REFUSALS, Loader, reject_of, timed
from beds.services.jobs.mapping import equal, masked
from beds.services.jobs.move import cut, estimate, read_all
from beds.services.jobs.parquet import ParquetFormat, content_sum, folder_of
from beds.services.jobs.storage import Storage
from beds.services.jobs.store import DELETED, EXPIRED, LISTED, RESTORED, JobStore, Reject
from beds.services.jobs.work import Chunk, Cut
from beds.templates.rules import JobRule
from beds.wire import codec

MOST_OF_A_PATH, MOST_OF_A_FOLDER = 900, 200
"""Characters of a file's path and of one folder's name; file systems allow 255 bytes for a name."""


def name_of(job: Job) -> str:
    """The beginning of the names of a job's files. Two users may have jobs of one guid."""
    return f"{job.guid}-{hashlib.sha256(job.user.encode()).hexdigest()[:8]}"


class ToFiles:
    """The work of the warehouse that moves records into files.

    Args:
        source: where the records are.
        rule, args: what to read, and into which folders.
        storage: where the files go.
        store: lists the files.
    """

    unit = "records"

    def __init__(
        self, source: BulkAdapter, rule: JobRule, args: Mapping[str, Any], storage: Storage, store: JobStore
    ) -> None:
        self._source, self._rule, self._args = source, rule, args
        self._files = Files(source, rule, storage, store)
        self._storage, self._store = storage, store

    def check(self) -> None:
        self._source.check_tables([f"fetch.{self._rule.job.read}", "by_keys", "remove_many"])

    def estimate(self) -> int | None:
        return estimate(self._source, self._args)

    def cut(self, job: Job, size: int) -> Cut:
        return cut(self._source, self._rule.job.read, self._args, job.head, size)

    def preview(self, size: int) -> tuple[int, list[Any], list[Reject]]:
        rows = self._source.read_range(self._rule.job.read, self._args, None, None, size)
        rejects: list[Reject] = []
        kept = self._kept(rows, rejects)
        return len(rows), masked(self._source.template, kept), rejects

    def process(self, chunk: Chunk) -> Tally:
        step = chunk.step("remove")
        if chunk.repeated and (noted := self._source.noted(step)) is not None:
            return self._settle(chunk, noted)
        rows = chunk.records
        if rows is None:
            rows = read_all(self._source, self._rule.job.read, self._args, chunk, self._rule.run.records)
        kept = self._kept(rows, chunk.rejects)
        recovered = self._recovered(chunk) if chunk.is_old else 0
        files = self._files.write(chunk, kept)
        chunk.store_rejects(chunk.rejects)
        key_of = self._source.template.key_of
        noted = {"read": len(rows) + recovered, "rejected": len(chunk.rejects), "files": files, "recovered": recovered}
        expected = {key_of(row): row for row in kept}
        try:
            noted = timed(chunk, lambda: self._source.remove_unchanged(expected, (), step, noted))
        except AlreadyDone:
            noted = self._source.noted(step)
            counted = {file["id"] for file in noted["files"]}
            for file in files:
                if file["id"] not in counted:
                    self._storage.remove(file["id"])
        return self._settle(chunk, noted)

    def undo(self, chunk: Chunk) -> Tally:
        step = chunk.step("remove")
        nothing = {"read": 0, "rejected": 0, "files": [], "recovered": 0, "removed": 0, "changed": [], "gone": []}
        with contextlib.suppress(AlreadyDone):
            self._source.note(step, nothing)
        return self._settle(chunk, self._source.noted(step))

    def finish(self, job: Job) -> str:
        """Delete what killed chunks have left behind, and write the manifest. Each file was read back when written."""
        files = self._store.files_of(job.guid, job.user)
        for path in self._storage.unlisted(name_of(job), [file["id"] for file in files]):
            self._storage.remove(path)
        self._files.write_manifest()
        return ""

    def verify(self, job: Job) -> tuple[int, list[str]]:
        written = self._store.files_of(job.guid, job.user)
        if job.tally.moved:
            _check_listed(job.guid, written)
        files = [file for file in written if file["state"] == LISTED]
        problems = []
        for file in files:
            try:
                self._storage.read_listed(file)
            except FileDamaged as damaged:
                problems.append(damaged.message)
        return len(files), problems

    def _recovered(self, chunk: Chunk) -> int:
        """List the files of an old chunk whose records were removed, as the ledger has forgotten. Returns how many.

        Of several attempts the latest file of a record counts, less the records that the source still has.
        """
        job, lane = chunk.job, chunk.lane
        listed = [file["id"] for file in self._store.files_of(job.guid, job.user)]
        seen: set[Key] = set()
        for path in self._storage.unlisted(f"{name_of(job)}-{lane.lane}-{lane.n}", listed):
            rows = self._files.format.read(self._storage.read(path))
            key_of = self._source.template.key_of
            there = set(self._source.read_by_keys(rows))
            left = [row for row in rows if key_of(row) not in there and key_of(row) not in seen]
            if left:
                self._files.list(job, [self._files.write_one({"id": path}, left)], set())
            seen |= {key_of(row) for row in left}
        return len(seen)

    def _kept(self, rows: Sequence[Record], rejects: list[Reject]) -> list[Record]:
        """The records that a file keeps; the others are added to `rejects`."""
        kept = []
        doubtful = self._files.format.doubtful_fields(rows)
        for row in rows:
            try:
                self._files.check(row, doubtful)
                kept.append(row)
            except REFUSALS as error:
                template = self._source.template
                rejects.append(reject_of(template, template.key_of(row), error))
        return kept

    def _settle(self, chunk: Chunk, noted: Mapping[str, Any]) -> Tally:
        """List the chunk's files, without the records that are not moved after all."""
        left = {tuple(key) for key in (*noted["changed"], *noted["gone"])}
        self._files.list(chunk.job, noted["files"], left)
        return Tally(
            read=noted["read"],
            moved=int(noted["removed"]) + noted["recovered"],
            changed=len(noted["changed"]),
            deleted=len(noted["gone"]),
            rejected=noted["rejected"],
            chunks=1,
        )


class FromFiles:
    """The work that restores the files of a job.

    Args:
        target: where the records go.
        rule: of the job.
        storage: where the files are.
        store: lists the files.
        guid, user: of the job whose files are restored.
    """

    unit = "records"

    def __init__(
        self, target: BulkAdapter, rule: JobRule, storage: Storage, store: JobStore, guid: str, user: str
    ) -> None:
        self._target, self._rule = target, rule
        self._files = Files(target, rule, storage, store)
        self._storage, self._store = storage, store
        self._guid, self._user = guid, user
        self._loader = Loader(target, rule.run)

    def check(self) -> None:
        self._target.check_tables(["load", "by_keys", "remove_many"])
        _check_listed(self._guid, self._store.files_of(self._guid, self._user))

    def estimate(self) -> int | None:
        return sum(int(file["rows"]) for file in self._listed())

    def cut(self, job: Job, size: int) -> Cut:
        waiting = [file for file in self._listed() if job.head is None or file["id"] > job.head]
        return Cut(waiting[0]["id"], len(waiting) == 1) if waiting else Cut(None, True)

    def preview(self, size: int) -> tuple[int, list[Any], list[Reject]]:
        files = self._listed()
        rows = self._files.format.read(self._storage.read_listed(files[0])) if files else []
        return sum(file["rows"] for file in files), masked(self._target.template, rows), []

    def process(self, chunk: Chunk) -> Tally:
        path = chunk.lane.until
        file = next(f for f in self._store.files_of(self._guid, self._user) if f["id"] == path)
        if file["state"] != LISTED:
            moved, rejected = file.get("moved") or 0, file.get("rejected") or 0  # by an earlier delivery
            return Tally(read=file["rows"], moved=moved, rejected=rejected, chunks=1)
        rows = self._files.format.read(self._storage.read_listed(file))
        wanted: dict[Key, Record] = {self._target.template.key_of(row): row for row in rows}
        own, there = self._loader.load(chunk, wanted)
        _, copied = self._loader.read_back(chunk, wanted, own, there)
        left = [row for key, row in wanted.items() if key not in set(copied)]
        if left:
            self._files.list(chunk.job, [self._files.write_one(file, left)], set(), of=file)
        chunk.store_rejects(chunk.rejects)
        self._store.change_file(file["id"], RESTORED, moved=len(copied), rejected=len(rows) - len(copied))
        return Tally(read=len(rows), moved=len(copied), there=len(there), rejected=len(rows) - len(copied), chunks=1)

    def undo(self, chunk: Chunk) -> Tally:
        """Restore the rest of the file: another client may have changed the records that are restored already."""
        return self.process(chunk)

    def finish(self, job: Job) -> str:
        self._files.write_manifest()
        for file in self._store.files_of(self._guid, self._user):
            if file["state"] == RESTORED:
                self._storage.remove(file["id"])
                self._store.change_file(file["id"], DELETED)
        return ""

    def verify(self, job: Job) -> tuple[int, list[str]]:
        raise JobError("a restore has no files of its own", detail={"guid": job.guid})

    def _listed(self) -> list[Record]:
        return [file for file in self._store.files_of(self._guid, self._user) if file["state"] == LISTED]


def _check_listed(guid: str, files: Sequence[Record]) -> None:
    """Raises JobError: none of a job's files is in use any more."""
    if not any(file["state"] == LISTED for file in files):
        states = ", ".join(sorted({str(file["state"]) for file in files})) or "none were written"
        raise JobError(f"job {guid} has no files that are in use: {states}", detail={"guid": guid})


class Files:
    """Writes, lists and rewrites the files of one rule."""

    def __init__(self, adapter: BulkAdapter, rule: JobRule, storage: Storage, store: JobStore) -> None:
        self._template, self._rule = adapter.template, rule
        self._storage, self._store = storage, store
        self.format = ParquetFormat(adapter.template)

    def check(self, row: Record, doubtful: Set[str]) -> None:
        """Refuse a record that no file keeps, or whose folder has too long a name. Raises InvalidPayload."""
        self.format.check(row, doubtful)
        for part in self._rule.job.partition:
            if len(folder_of([part], row)) > MOST_OF_A_FOLDER:
                field = part.partition("(")[2].rstrip(")") or part
                raise TooLong(
                    f"field {field} is too long for the name of a folder",
                    detail={"field": field, "max_length": MOST_OF_A_FOLDER},
                )

    def write(self, chunk: Chunk, rows: Sequence[Record]) -> list[Record]:
        """Write a chunk's records, one file for each folder, and read the files back."""
        by_folder: dict[str, list[Record]] = {}
        for row in rows:
            by_folder.setdefault(folder_of(self._rule.job.partition, row), []).append(row)
        attempt = secrets.token_hex(4)
        name = f"{name_of(chunk.job)}-{chunk.lane.lane}-{chunk.lane.n}-{attempt}.parquet"
        return [self._written(f"{folder}/{name}" if folder else name, records) for folder, records in by_folder.items()]

    def write_one(self, file: Record, rows: Sequence[Record]) -> Record:
        """Write some of a file's records anew. Equal records make a file of the same name."""
        marked = hashlib.sha256(f"{file['id']} {content_sum(rows)}".encode()).hexdigest()[:8]
        return self._written(f"{file['id'].removesuffix('.parquet')}-{marked}.parquet", rows)

    def list(self, job: Job, files: Sequence[Record], left: set[Key], of: Record | None = None) -> None:
        """List files. One that holds records in `left` is first written anew without them."""
        at = now()
        listed = []
        for file in files:
            kept = file
            if left:
                rows = self.format.read(self._storage.read(file["id"]))
                staying = [row for row in rows if self._template.key_of(row) not in left]
                if len(staying) < len(rows):
                    if not staying:
                        continue
                    kept = self.write_one(file, staying)
            owner = {"user": of["user"], "guid": of["guid"]} if of else {"user": job.user, "guid": job.guid}
            more = {"rule": job.rule, "cold": self._rule.job.cold, "state": LISTED, "at": at, "changed_at": at}
            listed.append({**kept, **owner, **more})
        if listed:
            self._store.list_files(listed)

    def write_manifest(self) -> None:
        """Write the rule's manifest, without files that have been kept long enough; these are deleted."""
        files = []
        for file in list(self._store.files_in(self._rule.name, LISTED)):
            keep = self._rule.keep
            if keep and file["at"] + timedelta(days=keep.days) < now():
                self._store.change_file(file["id"], EXPIRED)
                continue
            files.append(file)
        self._storage.write_manifest(self._template.name, self.format.columns, files)
        for file in list(self._store.files_in(self._rule.name, EXPIRED)):
            self._storage.remove(file["id"])
            self._store.change_file(file["id"], DELETED)

    def _holds(self, data: bytes, rows: Sequence[Record]) -> bool:
        """True if a file has these records, in this order."""
        found = self.format.read(data)
        return len(found) == len(rows) and all(equal(row, copy) for row, copy in zip(rows, found, strict=True))

    def _written(self, path: str, rows: Sequence[Record]) -> Record:
        """Write one file, read it back, and describe it. Raises FileDamaged: it reads back otherwise."""
        if len(path) > MOST_OF_A_PATH:
            raise ConfigurationError(
                f"a folder of {self._rule.name} would have a name of {len(path)} characters",
                hint="partition by fields with short values",
            )
        data = self.format.write(rows)
        self._storage.write(path, data)
        back = self._storage.read(path)
        if back != data or (self._rule.run.verify != "count" and not self._holds(back, rows)):
            raise FileDamaged(f"the file {path} reads back otherwise than it was written", detail={"file": path})
        ends = () if self._template.has_sensitive_key else (rows[0], rows[-1])
        keys = [codec.dumps(list(self._template.key_of(row))).decode() for row in ends] or ["", ""]
        return {
            "id": path,
            "rows": len(rows),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "content": content_sum(rows),
            "first": keys[0],
            "last": keys[1],
        }
