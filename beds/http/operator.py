"""What operators see and order: the whole system, over an operator's own connection."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from beds.client.client import Client
from beds.client.flows import Flows, Handle
from beds.client.lineage import Node as LineageNode
from beds.client.loop import drive
from beds.client.overview import operation_rates, queue_rates, running_jobs
from beds.config import Settings
from beds.domain.reply import Record
from beds.domain.ticket import TicketStatus
from beds.errors import BedsError
from beds.transport.connection import connect_to

WINDOW_SECONDS = 30.0
FRESH_SECONDS = 2.0
"""An overview is used for this time by all that look at it."""
TIMEOUT = 5.0
DEAD_SHOWN, LOGS_SHOWN = 50, 100


class Operator:
    """The operator's side of the node.

    Args:
        settings: with `[amqp] operator_url`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = Client(settings, operator=True)
        self.flows: Flows = self._client.flows
        self._lock = asyncio.Lock()
        self._seen: dict[str, Any] = {}
        self._seen_at = float("-inf")

    async def overview(self) -> dict[str, Any]:
        """Queues, jobs, dead events and the latest warnings; and why one of them is missing, under `problem`."""
        async with self._lock:
            if time.monotonic() - self._seen_at >= FRESH_SECONDS:
                self._seen = await asyncio.to_thread(self._look)
                self._seen_at = time.monotonic()
        return self._seen

    def _look(self) -> dict[str, Any]:
        found: dict[str, Any] = {"queues": {}, "jobs": [], "dead": [], "logs": [], "problem": ""}
        try:
            with connect_to(self._settings.amqp, self._settings.amqp.client_url, patience=TIMEOUT) as connection:
                found["queues"] = queue_rates(self._client, connection, WINDOW_SECONDS, TIMEOUT)
            found["jobs"] = running_jobs(self._client, TIMEOUT)
            found["dead"] = list(
                self._client.fetch("msDead", "waiting", {"state": "dead"}, limit=DEAD_SHOWN, timeout=TIMEOUT)
            )
            found["logs"] = self.logs(logging.WARNING)
        except BedsError as error:
            found["problem"] = f"{error.code}: {error.message}"
        return found

    async def operations(self, queue: str) -> list[dict[str, Any]]:
        """The lately executed events of a queue, by template, operation and outcome."""
        return await asyncio.to_thread(operation_rates, self._client, queue, WINDOW_SECONDS, TIMEOUT)

    def logs(self, least: int) -> list[Record]:
        """The latest log records of a level (`logging.WARNING`, …) and above, newest first."""
        return list(self._client.fetch("msLogs", "latest", {"least": least}, limit=LOGS_SHOWN, timeout=TIMEOUT))

    async def dead_order(self, verb: str, dead_id: str, by: str) -> dict[str, Any]:
        """Replay or discard a dead event."""
        found: dict[str, Any] = await drive(self.flows.ask(verb, {"ids": [dead_id], "by": by}, TIMEOUT), self.flows)
        self._seen_at = float("-inf")
        return found

    async def job_order(self, verb: str, guid: str, by: str) -> Any:
        """Pause, resume or cancel a job."""
        report = await drive(self.flows.ask(verb, {"guid": guid, "by": by}, TIMEOUT), self.flows)
        self._seen_at = float("-inf")
        return report

    async def status(self, guid: str) -> TicketStatus:
        """The status of anybody's ticket."""
        return await drive(self.flows.status(guid, TIMEOUT), self.flows)

    async def cancel(self, guid: str, by: str) -> TicketStatus:
        return await drive(self.flows.cancel(guid, by, TIMEOUT), self.flows)

    async def job_report(self, guid: str) -> dict[str, Any]:
        return await drive(self.flows.job_report(Handle(guid), TIMEOUT), self.flows)

    async def lineage(self, event: str) -> LineageNode:
        return await drive(self.flows.lineage(event, TIMEOUT), self.flows)

    def close(self) -> None:
        self._client.close()
