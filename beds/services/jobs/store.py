"""The job store: msJobs and what belongs to it, through the same adapters and stored commands as application data.

Each change of a job is decided on one version of it, and made only if it is still that version.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from beds.core.namaste import NamasteCore, Query, all_records
from beds.domain.clock import now
from beds.domain.job import Job
from beds.domain.reply import Record
from beds.errors import DuplicateKey, JobAlreadyRunning, NotFound, StoreUnavailable, UnknownTicket
from beds.services.dispatch import Factory
from beds.wire import codec

JOBS, REJECTS, PAGES, FILES = "msJobs", "msJobRejects", "msJobPages", "msFiles"
ATTEMPTS = 100
"""Attempts of a change while other changes come first."""
PAGE = 1000
LONGEST_WORK = 600.0
"""Seconds; a longer time between two changes of a job does not count as work."""
LISTED, RESTORED, EXPIRED, DELETED = "listed", "restored", "expired", "deleted"


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that a job did not move.

    Args:
        record_id: the record's key as text; never shown as it is.
        key: the same, as it may be shown.
        code: the error's code, or `in_doubt`.
        field: the field that it is about; empty if it is about none.
        why: the reason, without any value of the record.
    """

    record_id: str = field(repr=False)
    key: str
    code: str
    field: str = ""
    why: str = ""


class JobStore:
    """Jobs of all nodes. A job's key is its AMQP user and its guid, so no user can read or change another's.

    Args:
        factory: where the adapters come from.
        keep_days: how long rejects and pages are kept.
        secret: what only workers have; the ids of rejects follow from it.
    """

    def __init__(self, factory: Factory, keep_days: int, secret: str) -> None:
        self._factory = factory
        self._secret = secret.encode()
        self._keep = timedelta(days=keep_days)

    # --- jobs --------------------------------------------------------------------------------------------------------

    def create(self, job: Job) -> Job:
        """Store a new job, or return the stored one if its event was delivered before.

        Raises:
            JobAlreadyRunning: the rule has an active job.
        """
        document = job.to_document() | {"active": True}
        try:
            self._adapter(JOBS).create_record(document)
            return job
        except DuplicateKey:
            if (found := self.find(job.user, job.guid)) is not None:
                return found
        other = next((each for each in self.active() if each.rule == job.rule), None)
        raise JobAlreadyRunning(
            f"job {job.rule} has a run that has not ended",
            detail={"job": job.rule, **({"guid": other.guid} if other and other.user == job.user else {})},
        )

    def find(self, user: str, guid: str) -> Job | None:
        page = self._adapter(JOBS).fetch_records(Query("whole", {"user": user, "guid": guid}, 1))
        return Job.of(page[0]) if page else None

    def get(self, user: str, guid: str) -> Job:
        """Raises UnknownTicket: the user has no such job."""
        found = self.find(user, guid)
        if found is None:
            raise UnknownTicket(f"{guid[:64]} is no job of this user", detail={"guid": guid[:64]})
        return found

    def owners_of(self, guid: str) -> list[str]:
        """The users that have a job with this guid."""
        page = self._adapter(JOBS).fetch_records(Query("any_by_guid", {"guid": guid}, 10))
        return [str(record["user"]) for record in page]

    def active(self) -> list[Job]:
        return [Job.of(record) for record in self._adapter(JOBS).fetch_records(Query("active", {}, PAGE))]

    def last_due(self, rule: str) -> datetime | None:
        """When the last scheduled run of a rule was due."""
        page = self._adapter(JOBS).fetch_records(Query("last_due", {"rule": rule}, 1))
        return page[0]["due_at"] if page else None

    def last_of(self, rule: str) -> Job | None:
        """The latest job of a rule."""
        page = self._adapter(JOBS).fetch_records(Query("last_of", {"rule": rule}, 1))
        return Job.of(page[0]) if page else None

    def change(self, job: Job, changed: Job) -> Job | None:
        """Store `changed` in place of `job`. Returns the stored job; None if another change came first."""
        moment = now()
        worked = changed.worked + (0.0 if job.state.rests else _since(job, moment))
        stored = replace(changed, version=job.version + 1, changed_at=moment, worked=worked)
        changes = stored.to_document() | {"was": job.version, "active": not changed.state.is_final}
        cleared = {name: None for name in ("head", "ended_at") if getattr(stored, name) is None}
        try:
            self._adapter(JOBS).update_record({**changes, **cleared})
        except NotFound:
            return None
        return stored

    def update(self, job: Job, decide: Callable[[Job], Job | None]) -> Job:
        """Change a job by what `decide` makes of its current version; None leaves it unchanged.

        Raises:
            StoreUnavailable: others changed it again and again.
        """
        for _ in range(ATTEMPTS):
            wanted = decide(job)
            if wanted is None:
                return job
            if (stored := self.change(job, wanted)) is not None:
                return stored
            time.sleep(random.uniform(0.0, 0.01))
            job = self.get(job.user, job.guid)
        raise StoreUnavailable(f"job {job.guid} is changed again and again")

    # --- what belongs to a job ---------------------------------------------------------------------------------------

    def reject(self, job: Job, rejects: Sequence[Reject]) -> None:
        """Store what was not moved. A reject that is stored already stays as it is."""
        at = now()
        documents = [
            {
                "id": self._reject_id(job, reject),
                "user": job.user,
                "guid": job.guid,
                "key": reject.key[:1000],
                "field": reject.field[:80],
                "code": reject.code,
                "why": reject.why[:500],
                "at": at,
                "expires_at": at + self._keep,
            }
            for reject in rejects
        ]
        self._write(REJECTS, documents)

    def _reject_id(self, job: Job, reject: Reject) -> str:
        """The same for the same reject. It does not reveal the key, which may be sensitive."""
        text = f"{job.user} {job.guid} {reject.record_id} {reject.code}"
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()[:40]

    def write_pages(self, job: Job, first: int, pages: Sequence[str], *, part: bool) -> None:
        """Store pages of a result, numbered from `first`: all, or none if they are stored already."""
        expires_at = now() + self._keep
        documents = [
            {"user": job.user, "guid": job.guid, "page": first + place, "part": part, "records": text,
             "expires_at": expires_at}
            for place, text in enumerate(pages)
        ]  # fmt: skip
        if documents:
            with contextlib.suppress(DuplicateKey):  # an earlier delivery of the chunk has stored them
                self._adapter(PAGES).create_records(documents)

    def parts(self, job: Job) -> Iterator[list[Record]]:
        """The pages of a result that is not merged yet."""
        for record in self._all(PAGES, "parts", {"user": job.user, "guid": job.guid}, 10):
            yield codec.loads(record["records"])

    def list_files(self, files: Sequence[Record]) -> None:
        """List files that were written. One that is listed already stays as it is."""
        self._write(FILES, files)

    def files_of(self, job_guid: str, user: str) -> list[Record]:
        return list(self._all(FILES, "of_job", {"user": user, "guid": job_guid}))

    def files_in(self, rule: str, state: str) -> Iterator[Record]:
        """The files of a rule in a state."""
        return self._all(FILES, "in_state", {"rule": rule, "state": state})

    def change_file(self, path: str, state: str, **more: int) -> None:
        """Set a file's state. `more` has what was `moved` and `rejected` when it was restored."""
        self._adapter(FILES).update_record({"id": path, "state": state, "changed_at": now(), **more})

    def _write(self, template: str, documents: Sequence[Record]) -> None:
        checked = [self._factory.registry[template].check_create(document) for document in documents]
        for start in range(0, len(checked), PAGE):
            self._adapter(template).create_records(checked[start : start + PAGE])

    def _all(self, template: str, using: str, args: Mapping[str, Any], limit: int = PAGE) -> Iterator[Record]:
        return all_records(self._adapter(template), Query(using, args, limit))

    def _adapter(self, template: str) -> NamasteCore:
        return self._factory.adapter(template)


def _since(job: Job, moment: datetime) -> float:
    """Seconds of work since a job's last change."""
    if job.changed_at is None:
        return 0.0
    return min(LONGEST_WORK, max(0.0, (moment - job.changed_at).total_seconds()))
