"""The life of jobs: start, chunk by chunk, pause, resume, cancel, verification and end.

A job has rows of chunk events, its lanes. Each chunk publishes the next one of its lane before it is acknowledged, so
nothing coordinates them. msJobs says which chunk of each lane is current; a chunk event that is not is ignored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from beds.config import Settings
from beds.domain.clock import now
from beds.domain.event import Event
from beds.domain.job import VERIFIER, Job, JobKind, JobState, Lane, Tally
from beds.domain.reply import Record, Response
from beds.domain.ticket import TicketState
from beds.domain.trace import Trace
from beds.errors import (
    BedsError,
    BrokerUnavailable,
    ConfigurationError,
    JobNotResumable,
    MalformedEvent,
    NotFound,
    StoreUnavailable,
    TicketRevoked,
    UnknownTicket,
    WrongType,
)
from beds.services.execution import Detached, Redeliver
from beds.services.jobs.loading import IN_DOUBT
from beds.services.jobs.store import JobStore, Reject
from beds.services.jobs.throttle import Throttle
from beds.services.jobs.work import Chunk, Work
from beds.services.tickets import TicketStore
from beds.templates.registry import TemplateRegistry
from beds.templates.rules import JobRule, check_arguments, rule_from
from beds.wire import codec
from beds.wire.reply import encode_error, encode_reply

logger = logging.getLogger("celery.beds.jobs")

SILENT_LIMITS = 3
"""Time limits after which the event of a silent lane is published again."""
FIRST_SIZE = 250
"""Records of a job's first chunks; later ones grow and shrink with the time they take."""
LEAST_SIZE = 10
PROGRESS_SECONDS = 0.5
"""Interval at which a process stores a ticket's progress."""
AWAY_SECONDS = 2.0
"""Pause before the event of a chunk whose store is away is published again."""
LONGEST_REST = 10.0
"""Seconds a slot rests after one chunk, at most."""
DRY_RUN_RECORDS = 1000
LISTED_REJECTS = 100


class JobEvents(Protocol):
    """Publishes the events of jobs; see `worker.job_events`."""

    def publish(self, events: Sequence[Event]) -> None:
        """Publish events, and return when RabbitMQ has confirmed them. Raises BrokerUnavailable."""
        ...

    def waiting(self, queues: Iterable[str]) -> int:
        """How many events wait in some queues."""
        ...


Audit = Callable[[Job, Lane, Tally, Trace], None]
"""Writes the audit record of a chunk, and returns when it is confirmed."""
MakeWork = Callable[[Job, JobRule], Work]


@dataclass(frozen=True, slots=True)
class Delivered:
    """The event that is executed.

    Args:
        trace: of the event, with its user and lineage.
        task, queue, summary: the event's.
        actor: on whose behalf its application acts.
    """

    trace: Trace
    task: str
    queue: str
    summary: str = ""
    actor: str = ""

    @property
    def guid(self) -> str:
        return self.trace.lineage.guid


class Jobs:
    """Jobs, as the tasks of the job pools and CALGON use them.

    Args:
        settings: of the node.
        registry: templates and rules.
        store: msJobs.
        tickets: the ticket store.
        events: publishes chunk events.
        make_work: makes the work of a job.
        throttle: says how long a chunk's slot rests.
        audit: writes the audit record of a chunk.
        interrupts: the exception raised inside a chunk when its soft time limit strikes.
        sleep: waits for seconds; replaced in tests.
    """

    def __init__(
        self,
        settings: Settings,
        registry: TemplateRegistry,
        store: JobStore,
        tickets: TicketStore,
        events: JobEvents,
        make_work: MakeWork,
        throttle: Throttle,
        audit: Audit,
        interrupts: type[Exception],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interrupts = interrupts
        self._settings, self._registry = settings, registry
        self._store, self._tickets, self._events = store, tickets, events
        self._make_work, self._throttle, self._audit, self._sleep = make_work, throttle, audit, sleep
        self._shown_at: dict[tuple[str, str], float] = {}
        self._works: dict[tuple[str, str], Work] = {}

    # --- start -------------------------------------------------------------------------------------------------------

    def start(self, delivered: Delivered, kind: JobKind, body: Mapping[str, Any]) -> Response:
        """Start a job, or make a dry run.

        Returns:
            The report of a dry run.

        Raises:
            Detached: the job goes on in its chunks, which end its ticket.
            JobAlreadyRunning, UnknownRule, InvalidPayload, …: nothing was started.
        """
        if surplus := body.keys() - {"rule", "args", "dry_run", "restore", "verify"}:
            raise MalformedEvent(f"a job does not take {min(surplus)}", detail={"field": min(surplus)})
        rule = self._registry.jobs[body.get("rule")]  # type: ignore[index]
        if rule.kind is not kind:
            raise MalformedEvent(
                f"job {rule.name} is a {rule.kind}, and came to {kind.queue}", detail={"field": "rule"}
            )
        dry_run, restore, verify = body.get("dry_run", False), body.get("restore", ""), body.get("verify", "")
        if not isinstance(dry_run, bool):
            raise WrongType("dry_run takes true or false", detail={"field": "dry_run"})
        for name, guid in (("restore", restore), ("verify", verify)):
            if not isinstance(guid, str):
                raise WrongType(f"{name} takes the guid of a job", detail={"field": name})
        if verify:
            return self._verify_again(self._of_rule(delivered, rule, verify))
        job = self._new(delivered, rule, check_arguments(body.get("args", {})), restore)
        work = self._make_work(job, rule)
        work.check()
        if dry_run:
            return self._dry_run(job, rule, work)
        self._begin(job, work, rule)
        raise Detached

    def start_scheduled(self, job: Job, rule: JobRule) -> None:
        """Start a job that is due. Raises JobAlreadyRunning."""
        ticket = {"guid": job.guid, "event_id": job.event_id, "root_id": job.root_id, "queue": job.kind.queue}
        self._tickets.accept(job.user, [ticket | {"summary": f"{job.rule}.{job.kind}"}])
        self._begin(job, self._make_work(job, rule), rule)

    def _new(self, delivered: Delivered, rule: JobRule, given: Mapping[str, Any], restore: str) -> Job:
        lineage = delivered.trace.lineage
        restored_user = ""
        if restore:
            former = self._of_rule(delivered, rule, restore)
            args, restored_user = codec.loads(former.args), former.user
        else:
            args = rule.arguments(self._registry[rule.job.source], given, now())
        return Job(
            user=delivered.trace.user,
            guid=lineage.guid,
            version=0,
            rule=rule.name,
            kind=rule.kind,
            state=JobState.RUNNING,
            settings=settings_of(rule),
            args=codec.dumps(args).decode(),
            event_id=lineage.event_id,
            root_id=lineage.root_id,
            depth=lineage.depth,
            lanes=first_lanes(rule),
            restore=restore,
            restored_user=restored_user,
            actor=delivered.actor,
            made_at=now(),
            changed_at=now(),
        )

    def _of_rule(self, delivered: Delivered, rule: JobRule, guid: str) -> Job:
        """An ended job of the rule: the user's and actor's own, or a scheduled one.

        Raises:
            UnknownTicket: there is none of the actor.
            JobNotResumable: it has not ended.
        """
        found = self._store.find(self._settings.amqp.workers, guid)
        if found is None:
            found = self._store.get(delivered.trace.user, guid)
            if delivered.actor and found.actor != delivered.actor:
                raise UnknownTicket(f"{guid[:64]} is no job of this actor", detail={"guid": guid[:64]})
        if found.rule != rule.name:
            raise MalformedEvent(f"{guid} is a job of {found.rule}, not of {rule.name}", detail={"field": "restore"})
        if rule.kind is JobKind.AGGREGATE or not found.state.is_final:
            raise _not_now(
                found, "only what an ended migration or warehouse job has moved can be looked at or restored"
            )
        return found

    def _verify_again(self, job: Job) -> Response:
        looked_at, problems = self._make_work(job, rule_of(job)).verify(job)
        return Response("", 0, {"job": job.rule, "looked_at": looked_at, "problems": problems})

    def _begin(self, job: Job, work: Work, rule: JobRule) -> None:
        due = now() + self._patience(job)
        job = replace(
            job,
            total=work.estimate(),
            baseline_ms=self._throttle.baseline(rule),
            lanes=tuple(replace(lane, due=due) for lane in job.lanes),
        )
        stored = self._store.create(job)
        if stored.state.is_final:  # this event is a late copy
            self._end_ticket(stored, stored.state, stored.ended_at or now())
            return
        self._events.publish([self._event(stored, lane.lane, lane.next_event) for lane in stored.lanes])

    def _dry_run(self, job: Job, rule: JobRule, work: Work) -> Response:
        looked_at, sample, rejects = work.preview(min(DRY_RUN_RECORDS, rule.run.records))
        report = {
            "job": rule.name,
            "kind": str(rule.kind),
            "total": work.estimate(),
            "unit": work.unit,
            "looked_at": looked_at,
            "sample": sample,
            "refused": len(rejects),
            "rejects": [_shown(reject) for reject in rejects[:LISTED_REJECTS]],
        }
        return Response("", 0, report)

    # --- one chunk ---------------------------------------------------------------------------------------------------

    def chunk(self, delivered: Delivered, body: Mapping[str, Any], *, redelivered: bool) -> Response:
        """Do one chunk of a job, and publish the next one of its lane."""
        guid, number, n = body.get("job"), body.get("lane"), body.get("n")
        if not (isinstance(guid, str) and type(number) is int and type(n) is int):
            raise MalformedEvent("a chunk has a job, a lane and a number", detail={"field": "job"})
        again = redelivered or body.get("again") is True
        began = time.perf_counter()
        try:
            job = self._store.find(delivered.trace.user, guid)
            lane = job.lane(number) if job else None
            if job is None or lane is None or job.state.is_final:
                return Response("", 0)
            if lane.ended:
                return self._end_lane(job)
            return self._turn(delivered, job, lane, n, again, began)
        except StoreUnavailable as away:
            return self._wait(delivered, body, away)
        except BrokerUnavailable as error:
            raise Redeliver(error.message) from None
        except self._interrupts:
            raise Redeliver("it ran longer than its pool allows") from None
        except Redeliver:
            raise  # its audit record is not confirmed
        except BedsError as error:
            self._stall(delivered.trace.user, guid, f"{error.code}: {error.message}", number, n)
            raise
        except Exception as error:
            what = f"the worker failed with {type(error).__name__}"
            self._stall(delivered.trace.user, guid, what, number, n)
            raise

    def _wait(self, delivered: Delivered, body: Mapping[str, Any], away: StoreUnavailable) -> Response:
        """Publish a chunk's event again while a store is away.

        It is a new message, since a redelivery would count towards the delivery limit.
        """
        logger.warning("chunk %s.%s of job %s waits: %s", body["lane"], body["n"], body["job"], away.message)
        try:
            self._sleep(AWAY_SECONDS)
            self._republish(delivered, body)
        except (BrokerUnavailable, self._interrupts):
            raise Redeliver(away.message) from None
        return Response("", 0)

    def _turn(self, delivered: Delivered, job: Job, lane: Lane, n: int, again: bool, began: float) -> Response:
        if n == lane.n and lane.folded:
            if again:  # its slot ended after it was counted, and perhaps before it published the next one
                self._go_on(job, lane)
            return Response("", 0)
        if n != lane.next_event:
            return Response("", 0)
        if job.state.rests:
            if not lane.folded:  # the chunk is not at work any more, so a resumed job need not wait for it
                self._store.update(job, lambda j: self._waiting_until(j, lane.lane, now()))
            return Response("", 0)
        if job.state is JobState.CANCELLING:
            return self._end_cancelled(job, lane, again)
        if lane.lane == VERIFIER:
            return self._verify(job)
        rule = rule_of(job)
        work = self._work(job, rule)
        # A chunk that was begun is finished outside of the window, too.
        if lane.folded and (opens := self._throttle.opens(rule, now())) is not None:
            self._store.update(job, lambda j: self._waiting_until(j, lane.lane, opens))
            return Response("", 0)
        chunk = self._claim(job, lane, n, work, again)
        if chunk is None:
            return Response("", 0)
        if chunk.lane.ended:
            return self._end_lane(chunk.job)
        tally = work.process(chunk)
        self._audit(chunk.job, chunk.lane, tally, delivered.trace)
        job = self._fold(chunk, rule, tally)
        self._show_progress(job, work)
        self._sleep(min(LONGEST_REST, self._throttle.rest(job, rule, time.perf_counter() - began)))
        current = job.lane(lane.lane)
        assert current is not None
        self._go_on(job, current)
        return Response("", tally.moved)

    def _claim(self, job: Job, lane: Lane, n: int, work: Work, again: bool) -> Chunk | None:
        """Take the chunk: the next range for a new one, the same range for one that was begun.

        Returns:
            The chunk; its lane has ended if there is no further range. None if another process is at work on it.
        """
        if n == lane.n:
            if self._is_at_work(job, lane) and not again:
                return None
            old = lane.began is not None and now() - lane.began > timedelta(seconds=self._settings.ledger.ttl)
            job = self._store.update(job, lambda j: self._with_due(j, lane.lane, n))
            taken = job.lane(lane.lane)
            if taken is None or taken.n != n or taken.folded:
                return None
            return self._chunk(job, taken, repeated=True, is_old=old)
        while True:
            head = job.head
            found = None if job.exhausted else work.cut(job, lane.size or FIRST_SIZE)
            moment = now()
            if found is None or found.until is None:
                ended = replace(lane, ended=True, due=None)
                wanted = replace(job.with_lane(ended), exhausted=True)
            else:
                ended = replace(
                    lane,
                    n=n,
                    after=head,
                    until=found.until,
                    folded=False,
                    began=moment,
                    due=moment + self._patience(job),
                )
                wanted = replace(job.with_lane(ended), head=found.until, exhausted=found.is_last)
            stored = self._store.change(job, wanted)
            if stored is not None:
                taken = stored.lane(lane.lane)
                assert taken is not None
                return self._chunk(stored, taken, found.records if found and found.records else None)
            job = self._store.get(job.user, job.guid)
            lane = job.lane(lane.lane) or lane
            if job.state is not JobState.RUNNING or lane.n >= n or lane.ended:
                # Paused meanwhile, or a copy of this event took the chunk; a lost reply to the change shows so, too.
                if lane.n == n and not lane.folded and job.state is JobState.RUNNING:
                    return self._chunk(job, lane, repeated=True)
                return None

    def _chunk(
        self, job: Job, lane: Lane, records: list[Record] | None = None, *, repeated: bool = False, is_old: bool = False
    ) -> Chunk:
        return Chunk(job, lane, lambda rejects: self._store.reject(job, rejects), records, repeated, is_old)

    def _fold(self, chunk: Chunk, rule: JobRule | None, tally: Tally) -> Job:
        """Count a chunk, once. Without the rule, which a cancelled job does not need, nothing else is decided."""
        number, n = chunk.lane.lane, chunk.lane.n

        def counted(job: Job) -> Job | None:
            lane = job.lane(number)
            if lane is None or lane.n != n or lane.folded:
                return None
            moment = now()
            size = _next_size(chunk, rule) if rule else lane.size
            lane = replace(lane, folded=True, size=size, due=moment + self._patience(job))
            found = replace(job.with_lane(lane), tally=job.tally.plus(tally))
            is_running = rule is not None and found.state is JobState.RUNNING
            if rule is not None and is_running and found.tally.rejected - job.excused > rule.run.max_rejects:
                found = replace(
                    found,
                    state=JobState.STALLED,
                    why=f"{found.tally.rejected} records were refused; max_rejects = {rule.run.max_rejects}",
                )
            return found

        job = self._store.update(chunk.job, counted)
        if job.state is JobState.STALLED:
            self._store_progress(job)
        return job

    def _go_on(self, job: Job, lane: Lane) -> None:
        """Publish the lane's next event, unless the job rests. In a cancelled job the event ends the lane."""
        if not job.state.rests and not job.state.is_final and not lane.ended:
            self._events.publish([self._event(job, lane.lane, lane.next_event)])

    def _end_lane(self, job: Job) -> Response:
        """After the end of a lane: the last one has the job verified, or ends a cancelled one."""
        if job.state is JobState.CANCELLING:
            return self._finish_cancelled(job)
        if job.is_over and job.state is JobState.RUNNING:
            due = now() + self._patience(job)
            job = self._store.update(
                job,
                lambda j: (
                    replace(j.with_lane(Lane(VERIFIER, due=due)), state=JobState.VERIFYING)
                    if j.is_over and j.state is JobState.RUNNING
                    else None
                ),
            )
        if job.state is JobState.VERIFYING:
            self._events.publish([self._event(job, VERIFIER, 1)])
        return Response("", 0)

    def _verify(self, job: Job) -> Response:
        wrong = self._work(job, rule_of(job)).finish(job)
        if wrong:
            self._stall(job.user, job.guid, wrong)
            return Response("", 0)
        moment = now()
        self._end_ticket(job, JobState.DONE, moment)
        self._store.update(
            job,
            lambda j: replace(j, state=JobState.DONE, ended_at=moment) if j.state is JobState.VERIFYING else None,
        )
        return Response("", 0)

    def _end_ticket(self, job: Job, state: JobState, moment: datetime) -> None:
        """End the ticket with the report; before the job, so that a crash between the two repeats it."""
        report = replace(job, state=state, ended_at=moment).report()
        if state is JobState.DONE:
            body, ending = encode_reply(job.guid, Response(job.guid, job.tally.moved, report)), TicketState.SUCCESS
        else:
            revoked = TicketRevoked(f"cancelled by {job.why}", detail={"guid": job.guid, "cancelled_by": job.why})
            body = encode_error(job.guid, str(TicketState.REVOKED), revoked, job.event_id)
            ending = TicketState.REVOKED
        self._tickets.end(job.user, job.guid, ending, body, job.why if state is JobState.CANCELLED else "")

    # --- pause, resume, cancel ---------------------------------------------------------------------------------------

    def pause(self, user: str, guid: str) -> Job:
        """Let each lane finish its chunk, and rest. Raises UnknownTicket, JobNotResumable."""
        job = self._store.update(
            self._store.get(user, guid),
            lambda j: replace(j, state=JobState.PAUSED) if j.state is JobState.RUNNING else None,
        )
        if job.state is not JobState.PAUSED:
            raise _not_now(job, "only a running job can be paused")
        self._store_progress(job)
        return job

    def resume(self, user: str, guid: str) -> Job:
        """Let a paused or stalled job go on; its rejects count anew. Raises UnknownTicket, JobNotResumable."""

        def resumed(job: Job) -> Job | None:
            if not job.state.rests:
                return None
            due = now() + self._patience(job)
            # A lane whose chunk is still at work goes on by itself; the sweep wakes it if its slot has ended.
            lanes = tuple(
                lane if lane.ended or (not lane.folded and self._is_at_work(job, lane)) else replace(lane, due=due)
                for lane in job.lanes
            )
            verifying = job.lane(VERIFIER) is not None
            state = JobState.VERIFYING if verifying else JobState.RUNNING
            return replace(job, state=state, lanes=lanes, why="", excused=job.tally.rejected)

        before = self._store.get(user, guid)
        if not before.state.rests:
            raise _not_now(before, "only a paused or stalled job can be resumed")
        job = self._store.update(before, resumed)
        self._wake(job, before)
        self._store_progress(job)
        return job

    def cancel(self, user: str, guid: str, by: str) -> Job | None:
        """Let each lane end after its chunk; None if the user has no such job that is active."""
        before = self._store.find(user, guid)
        if before is None or before.state.is_final:
            return None
        job = self._store.update(
            before, lambda j: replace(j, state=JobState.CANCELLING, why=by[:200]) if not _is_ending(j) else None
        )
        if job.state is JobState.CANCELLING:
            if job.is_over:
                self._finish_cancelled(job)
            else:
                self._wake(job, job)
        return job

    def dead(self, user: str, body: Mapping[str, Any], why: str) -> None:
        """Stall the job of a chunk that was given up."""
        guid, number, n = body.get("job"), body.get("lane"), body.get("n")
        if isinstance(guid, str) and isinstance(number, int) and isinstance(n, int):
            self._stall(user, guid, f"it was given up: {why}", number, n)

    def _end_cancelled(self, job: Job, lane: Lane, again: bool) -> Response:
        """End a lane of a cancelled job. If a slot ended during a chunk, the chunk is taken back."""
        if not lane.folded:
            if self._is_at_work(job, lane) and not again:
                return Response("", 0)  # its slot finishes it, and then publishes an event that ends the lane
            chunk = self._chunk(job, lane, repeated=True)
            job = self._fold(chunk, None, self._undo(chunk))
        job = self._store.update(
            job,
            lambda j: (
                j.with_lane(replace(j.lane(lane.lane) or lane, ended=True, due=None))
                if j.state is JobState.CANCELLING
                else None
            ),
        )
        return self._finish_cancelled(job)

    def _undo(self, chunk: Chunk) -> Tally:
        """Take a chunk back. If that can never work, its records are listed as in doubt, so that the job ends."""
        job, lane = chunk.job, chunk.lane
        try:
            return self._work(job, rule_of(job)).undo(chunk)
        except BedsError as error:
            if error.retryable:
                raise
            what = f"chunk {lane.lane}.{lane.n}"
            logger.error("%s of job %s (%s) cannot be taken back: %s", what, job.guid, job.rule, error)
            chunk.store_rejects([Reject(what, what, IN_DOUBT, "", f"it cannot be taken back: {error.message}")])
            return Tally(in_doubt=1, chunks=1)

    def _finish_cancelled(self, job: Job) -> Response:
        """End a cancelled job, once all of its lanes have ended."""
        if job.is_over and job.state is JobState.CANCELLING:
            self._publish_files(job)
            moment = now()
            self._end_ticket(job, JobState.CANCELLED, moment)
            self._store.update(
                job,
                lambda j: (
                    replace(j, state=JobState.CANCELLED, ended_at=moment) if j.state is JobState.CANCELLING else None
                ),
            )
        return Response("", 0)

    def _publish_files(self, job: Job) -> None:
        """List the files of a cancelled job in the manifest; without it, a reader would miss their records."""
        try:
            rule = rule_of(job)
            if rule.job.cold and not job.restore:
                self._work(job, rule).finish(job)
        except BedsError as error:
            if error.retryable:
                raise
            logger.error("the manifest of job %s (%s) cannot be written: %s", job.guid, job.rule, error)

    def _stall(self, user: str, guid: str, why: str, number: int = VERIFIER, n: int = 1) -> None:
        """Let a job rest because of its current chunk. A job that is being cancelled goes on with that."""
        job = self._store.find(user, guid)
        if job is None:
            return
        what = why if number == VERIFIER else f"chunk {number}.{n}: {why}"

        def stalled(job: Job) -> Job | None:
            lane = job.lane(number)
            if _is_ending(job) or lane is None or lane.ended or n != lane.next_event:
                return None
            # It is no longer at work, so a resumed job need not wait for it.
            return replace(job.with_lane(replace(lane, due=now())), state=JobState.STALLED, why=what[:1000])

        job = self._store.update(job, stalled)
        logger.error("job %s (%s), now %s: %s", job.guid, job.rule, job.state, what)
        self._store_progress(job)

    # --- the sweep ---------------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Publish the events of lanes that have been silent for too long. Returns how many."""
        moment = now()
        count = 0
        for job in self._store.active():
            try:
                count += 0 if job.state.rests else self._sweep_one(job, moment)
            except BedsError as error:
                if error.retryable:
                    raise
                logger.error("job %s (%s) cannot be looked at: %s", job.guid, job.rule, error)
        return count

    def _sweep_one(self, job: Job, moment: datetime) -> int:
        silent = [lane for lane in job.lanes if not lane.ended and lane.due is not None and lane.due < moment]
        if silent:
            numbers = {lane.lane for lane in silent}
            self._store.update(job, lambda j: self._with_dues(j, numbers))
            self._events.publish([self._event(job, lane.lane, lane.next_event, again=True) for lane in silent])
        elif job.is_over and job.state in (JobState.RUNNING, JobState.CANCELLING):
            self._end_lane(job)  # the slot of its last chunk ended before it could
        return len(silent)

    def _wake(self, job: Job, before: Job) -> None:
        """Publish the event of each lane that has not ended, unless its chunk is at work.

        Args:
            job: the job.
            before: the job before its lanes were given more time.
        """
        events = []
        for lane in job.lanes:
            was = before.lane(lane.lane) or lane
            if not lane.ended and (was.folded or not self._is_at_work(job, was)):
                events.append(self._event(job, lane.lane, lane.next_event, again=True))
        self._events.publish(events)

    def _is_at_work(self, job: Job, lane: Lane) -> bool:
        """Whether a slot may still execute the lane's current chunk: it began less than a time limit ago."""
        return lane.due is not None and now() < lane.due - (SILENT_LIMITS - 1) * self._limit(job)

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _event(self, job: Job, lane: int, n: int, *, again: bool = False) -> Event:
        return Event.of_chunk(job, lane, n, self._settings.node.name, self._settings.node.environment, again=again)

    def _republish(self, delivered: Delivered, body: Mapping[str, Any]) -> None:
        """Publish a chunk's event again, as a new message."""
        trace = delivered.trace
        event = Event(
            delivered.task, delivered.queue, {**body, "again": True}, delivered.summary, trace.lineage, True,
            actor=delivered.actor, for_user=trace.user, is_plain=True,
        )  # fmt: skip
        self._events.publish([event])

    def _limit(self, job: Job) -> timedelta:
        return timedelta(seconds=self._settings.broker(job.kind.queue).time_limit)

    def _patience(self, job: Job) -> timedelta:
        return SILENT_LIMITS * self._limit(job)

    def _with_due(self, job: Job, number: int, n: int) -> Job | None:
        lane = job.lane(number)
        if lane is None or lane.n != n or lane.folded:
            return None
        return job.with_lane(replace(lane, due=now() + self._patience(job)))

    def _with_dues(self, job: Job, numbers: Iterable[int]) -> Job:
        due = now() + self._patience(job)
        for number in numbers:
            if (lane := job.lane(number)) is not None:
                job = job.with_lane(replace(lane, due=due))
        return job

    def _waiting_until(self, job: Job, number: int, opens: datetime) -> Job | None:
        lane = job.lane(number)
        return None if lane is None else job.with_lane(replace(lane, due=opens))

    def _work(self, job: Job, rule: JobRule) -> Work:
        """The work of a job; kept while the process works on it."""
        key = (job.user, job.guid)
        if key not in self._works:
            self._works = {key: self._make_work(job, rule)}
        return self._works[key]

    def _show_progress(self, job: Job, work: Work) -> None:
        """Store the ticket's progress, at intervals."""
        moment, key = time.monotonic(), (job.user, job.guid)
        if moment - self._shown_at.get(key, 0.0) >= PROGRESS_SECONDS:
            self._shown_at = {key: moment}
            self._store_progress(job, work.unit)

    def _store_progress(self, job: Job, unit: str = "records") -> None:
        """Store the ticket's progress. A ticket that was cancelled cancels the job."""
        progress = job.progress(unit)
        try:
            found = self._tickets.progress_of_job(job.user, job.guid, progress)
        except NotFound:
            return  # it expired: the job goes on without it
        if (by := found.get("cancelled_by")) and not _is_ending(job):
            self.cancel(job.user, job.guid, str(by))


def first_lanes(rule: JobRule) -> tuple[Lane, ...]:
    """The lanes of a new job."""
    return tuple(Lane(number, size=min(FIRST_SIZE, rule.run.records)) for number in range(rule.run.parallel))


def settings_of(rule: JobRule) -> str:
    """A rule as JSON, to be kept with its job."""
    return codec.dumps(rule.model_dump(by_alias=True, exclude_none=True)).decode()


def rule_of(job: Job) -> JobRule:
    """The rule as it was when the job started."""
    try:
        return rule_from(codec.loads(job.settings), Path(f"{job.rule}.toml"))
    except ValidationError:
        raise ConfigurationError(
            f"the rule of job {job.guid} was stored by another version of BEDS",
            hint="cancel the job, and start it anew",
        ) from None


def _not_now(job: Job, why: str) -> JobNotResumable:
    return JobNotResumable(f"the job is {job.state}: {why}", detail={"state": str(job.state), "guid": job.guid})


def _is_ending(job: Job) -> bool:
    return job.state.is_final or job.state is JobState.CANCELLING


def _next_size(chunk: Chunk, rule: JobRule) -> int:
    """Records of the lane's next chunk: so many that one store call takes about `seconds`."""
    size = chunk.lane.size or FIRST_SIZE
    if chunk.slowest <= 0 or chunk.repeated:
        return size
    factor = min(2.0, max(0.5, rule.run.seconds / chunk.slowest))
    return max(min(LEAST_SIZE, rule.run.records), min(rule.run.records, round(size * factor)))


def _shown(reject: Reject) -> dict[str, str]:
    return {"key": reject.key, "code": reject.code, "field": reject.field, "why": reject.why}
