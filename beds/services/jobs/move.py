"""Moves the records of a range from one template to another: copy, read back, remove.

A record is taken out of the source only while its verified copy is in the target. Every step that writes notes what it
did in the ledger of its own store, so that a chunk that is repeated goes on where it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beds.adapters.bulk import BulkAdapter, Key
from beds.adapters.store import AlreadyDone
from beds.domain.job import Job, Tally
from beds.domain.record_id import id_text
from beds.domain.reply import Record
from beds.errors import BedsError, DuplicateKey, JobError, ResultTooLarge, TemplateError
from beds.services.jobs.loading import IN_DOUBT, Loader, timed
from beds.services.jobs.mapping import RecordMap, equal, masked
from beds.services.jobs.store import Reject
from beds.services.jobs.work import Chunk, Cut
from beds.templates.rules import Run
from beds.templates.template import FetchSpec
from beds.wire import codec

_NOTHING: Mapping[str, Any] = {
    "read": 0, "rejected": 0, "in_doubt": 0, "there": (), "refused": (), "removed": 0, "changed": (), "gone": (),
}  # fmt: skip
"""What a removal notes that removed nothing."""


class Move:
    """The work of a migration, and of the warehouse between two templates.

    Args:
        source, target: where the records are, and where they go.
        record_map: how they are mapped.
        using, args: the range's fetch, and its arguments.
        run: the rule's `[run]`.
        keep_source: whether the records stay in the source.
    """

    unit = "records"

    def __init__(
        self,
        source: BulkAdapter,
        target: BulkAdapter,
        record_map: RecordMap,
        using: str,
        args: Mapping[str, Any],
        run: Run,
        *,
        keep_source: bool,
    ) -> None:
        self._source, self._target, self._map = source, target, record_map
        self._using, self._args, self._run = using, args, run
        self._keep_source = keep_source
        self._loader = Loader(target, run)

    def check(self) -> None:
        spec = self._source.template.fetch_spec(self._using)
        if not spec.range:
            raise TemplateError(
                f"fetch {self._using} of {self._source.template.name} has no range = true: a job reads ranges",
                detail={"template": self._source.template.name, "using": self._using},
            )
        self._source.check_tables([f"fetch.{self._using}", *([] if self._keep_source else ["by_keys", "remove_many"])])
        self._target.check_tables(["load", "by_keys", "remove_many"])

    def estimate(self) -> int | None:
        return estimate(self._source, self._args)

    def cut(self, job: Job, size: int) -> Cut:
        return cut(self._source, self._using, self._args, job.head, size)

    def preview(self, size: int) -> tuple[int, list[Any], list[Reject]]:
        rows = self._source.read_range(self._using, self._args, None, None, size)
        chunk_rejects: list[Reject] = []
        wanted = self._mapped(rows, chunk_rejects)
        there = self._target.read_by_keys(wanted.values())
        taken = DuplicateKey(
            "the target has another record with this key", detail={"field": self._target.template.key_name}
        )
        for key, found in there.items():
            if key in wanted and not equal(wanted[key], found):
                chunk_rejects.append(self._loader.reject(key, taken))
        return len(rows), masked(self._target.template, list(wanted.values())), chunk_rejects

    # --- one chunk ---------------------------------------------------------------------------------------------------

    def process(self, chunk: Chunk) -> Tally:
        if chunk.repeated and (noted := self._source.noted(chunk.step("remove"))) is not None:
            return self._settle(chunk, noted)
        rows = chunk.records
        if rows is None:
            rows = read_all(self._source, self._using, self._args, chunk, self._run.records)
        tally = Tally(read=len(rows), chunks=1)
        wanted = self._mapped(rows, chunk.rejects)
        own, there = self._loader.load(chunk, wanted)
        stale, copied = self._loader.read_back(chunk, wanted, own, there)
        if self._keep_source:
            stale += [key for key in own if key not in wanted]
        if chunk.is_old:
            self._doubt_orphans(chunk, wanted)
        noted = {
            "read": tally.read,
            "rejected": sum(reject.code != IN_DOUBT for reject in chunk.rejects),
            "in_doubt": sum(reject.code == IN_DOUBT for reject in chunk.rejects),
            "there": [list(key) for key in there],
            "stale": [list(key) for key in stale],
            "refused": self._refused(rows, chunk.rejects),
        }
        chunk.store_rejects(chunk.rejects)
        if self._keep_source:
            outdated = [key for key in wanted if key in own and key in set(stale) and chunk.repeated]
            changed = [list(key) for key in map(self._map.key_in_source, outdated)]
            noted |= {"removed": len(copied), "changed": changed, "gone": []}
            return self._settle(chunk, self._noted_once(chunk, noted))
        return self._settle(chunk, self._remove(chunk, rows, copied, own, noted))

    def undo(self, chunk: Chunk) -> Tally:
        noted = self._source.noted(chunk.step("remove"))
        if noted is None:
            own, _ = self._loader.loaded(chunk)
            noted = self._noted_once(chunk, {**_NOTHING, "stale": [list(key) for key in own]})
        return self._settle(chunk, noted)

    def _noted_once(self, chunk: Chunk, noted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Note what became of a chunk from which nothing is removed. Returns what another delivery noted before."""
        try:
            self._source.note(chunk.step("remove"), noted)
        except AlreadyDone:
            return self._source.noted(chunk.step("remove"))  # type: ignore[no-any-return]
        return noted

    def finish(self, job: Job) -> str:
        """Compare both digests, if both templates have one and the source was kept."""
        if not self._has_digests or job.head is None or job.tally.rejected or job.tally.changed:
            return ""
        digests = []
        for adapter in (self._source, self._target):
            digests.append(adapter.read_once("digest", {}))
        return "" if digests[0] == digests[1] else f"the digests differ: {digests[0]} and {digests[1]}"

    @property
    def _has_digests(self) -> bool:
        """Whether source and target can be compared: a copy of all records, and a `[digest]` on both sides."""
        templates = (self._source.template, self._target.template)
        return self._keep_source and not self._args and all(template.digest for template in templates)

    def verify(self, job: Job) -> tuple[int, list[str]]:
        if not self._has_digests:
            raise JobError(
                "there is nothing to compare: the records left the source, or a template has no [digest]",
                detail={"guid": job.guid},
                hint="each copy was compared before its record was removed: see [run] verify of the rule",
            )
        problem = self.finish(job)
        return job.tally.moved, [problem] if problem else []

    def _mapped(self, rows: Sequence[Record], rejects: list[Reject]) -> dict[Key, Record]:
        """The records as the target takes them, by their key there; the others are added to `rejects`."""
        found: dict[Key, Record] = {}
        for row, mapped in zip(rows, self._map.apply_each(rows), strict=True):
            key = self._map.key_in_target(row)
            if isinstance(mapped, BedsError):
                rejects.append(self._loader.reject(key, mapped))
            else:
                found[key] = mapped
        return found

    def _doubt_orphans(self, chunk: Chunk, wanted: Mapping[Key, Record]) -> None:
        """List the target's records of an old chunk's range that the source lacks, as in doubt."""
        target = self._target.template
        using = next((name for name, spec in target.fetch.items() if _reads_all(spec, target.keys)), "")
        if not using or self._source.template.fetch_spec(self._using).cursor != self._source.template.keys:
            return
        for row in read_all(self._target, using, {}, chunk, self._run.records):
            if (key := target.key_of(row)) not in wanted:
                why = "the target has it, the source does not, and the ledger has no entry of the chunk any more"
                chunk.rejects.append(Reject(*self._loader.shown(key), IN_DOUBT, "", why))

    def _remove(
        self, chunk: Chunk, rows: Iterable[Record], copied: Iterable[Key], own: set[Key], noted: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        template = self._source.template
        by_key = {template.key_of(row): row for row in rows}
        expected = {key: by_key[key] for key in map(self._map.key_in_source, copied)}
        others = [key for key in map(self._map.key_in_source, own) if key not in expected]
        step = chunk.step("remove")
        try:
            return timed(chunk, lambda: self._source.remove_unchanged(expected, others, step, noted))
        except AlreadyDone:
            found: Mapping[str, Any] = self._source.noted(step)
            self._clean_late(chunk, own, found)
            return found

    def _clean_late(self, chunk: Chunk, own: set[Key], noted: Mapping[str, Any]) -> None:
        """Remove the copies that this delivery has loaded after another one had taken the chunk back.

        Args:
            chunk: the chunk.
            own: what was loaded.
            noted: what the other delivery noted.
        """
        names = self._source.template.keys
        if noted["removed"] or not own:
            return
        sources = {self._map.key_in_source(key): key for key in own}
        still = self._source.read_by_keys(dict(zip(names, key, strict=True)) for key in sources)
        late = [sources[key] for key in still]
        if late:
            with contextlib.suppress(AlreadyDone):
                self._target.remove(late, chunk.step("clean late"))

    def _settle(self, chunk: Chunk, noted: Mapping[str, Any]) -> Tally:
        """Remove the copies of records that are not moved after all, and count."""
        template = self._source.template
        there = set(map(tuple, noted["there"]))
        left = [self._target_key(template.keys, tuple(key)) for key in (*noted["changed"], *noted["gone"])]
        copies = [key for key in dict.fromkeys([*left, *map(tuple, noted["stale"])]) if key not in there]
        if copies:
            with contextlib.suppress(AlreadyDone):
                timed(chunk, lambda: self._target.remove(copies, chunk.step("clean")))
        moved = int(noted["removed"])
        refused = {tuple(key) for key in noted["refused"]}
        return Tally(
            read=noted["read"],
            moved=moved,
            there=min(len(there), moved),
            changed=sum(tuple(key) not in refused for key in noted["changed"]),
            deleted=len(noted["gone"]),
            rejected=noted["rejected"],
            in_doubt=noted["in_doubt"],
            chunks=1,
        )

    def _refused(self, rows: Iterable[Record], rejects: Iterable[Reject]) -> list[list[Any]]:
        """The source's keys of rejected records."""
        texts = {reject.record_id for reject in rejects}
        key_of = self._source.template.key_of
        return [list(key_of(row)) for row in rows if texts and id_text(self._map.key_in_target(row)) in texts]

    def _target_key(self, names: Sequence[str], key: Key) -> Key:
        return self._map.key_in_target(dict(zip(names, key, strict=True)))


def estimate(source: BulkAdapter, args: Mapping[str, Any]) -> int | None:
    """The number that `[estimate]` returns; None if the template has none."""
    spec = source.template.estimate
    if spec is None:
        return None
    rows = source.read_once("estimate", {name: value for name, value in args.items() if name in spec.args})
    values = [value for row in rows[:1] for value in row.values() if isinstance(value, int)]
    return values[0] if values else 0


def cut(source: BulkAdapter, using: str, args: Mapping[str, Any], head: str | None, size: int) -> Cut:
    """The next range after `head`. A result that is too large is read again in smaller portions."""
    while True:
        try:
            rows = source.read_range(using, args, bound(head), None, size)
            break
        except ResultTooLarge:
            if size == 1:
                raise
            size = max(1, size // 4)
    if not rows:
        return Cut(None, True)
    cursor = source.template.fetch_spec(using).cursor
    return Cut(codec.dumps([rows[-1][name] for name in cursor]).decode(), len(rows) < size, rows)


def read_all(source: BulkAdapter, using: str, args: Mapping[str, Any], chunk: Chunk, size: int) -> list[Record]:
    """All records of a chunk's range, however many were added to it meanwhile."""
    cursor = source.template.fetch_spec(using).cursor
    after, until = bound(chunk.lane.after), bound(chunk.lane.until)
    found: list[Record] = []
    while True:
        try:
            rows = source.read_range(using, args, after, until, size)
        except ResultTooLarge:
            if size == 1:
                raise
            size = max(1, size // 4)
            continue
        found += rows
        if len(rows) < size:
            return found
        after = [rows[-1][name] for name in cursor]


def bound(text: str | None) -> list[Any] | None:
    """The key values of a range's end."""
    return None if text is None else list(codec.loads(text))


def _reads_all(spec: FetchSpec, keys: Sequence[str]) -> bool:
    """Whether a fetch reads any range of keys, without further arguments."""
    return spec.range and spec.cursor == tuple(keys) and set(spec.args) <= set(spec.optional)
