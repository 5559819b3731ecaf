"""What each fetch takes, by its template and, where the argument stands only there, by the DBA's object."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from beds.client.flows import Flows
from beds.client.loop import drive
from beds.domain.description import Argument, Description, OperationDescription
from beds.errors import BedsError
from beds.templates.fields import FieldSpec
from beds.templates.template import FetchSpec, Template

FRESH_SECONDS = 30.0
"""A description is used for this time; afterwards it is fetched again beside the next request."""
ASK_SECONDS = 5.0
AGAIN_SECONDS = 2.0
"""Time between two attempts while the workers do not reply."""

logger = logging.getLogger("beds.http")


class Signatures:
    """Descriptions of the templates, fetched over AMQP and kept.

    Args:
        flows: of the node's client.
    """

    def __init__(self, flows: Flows) -> None:
        self._flows = flows
        self._known: dict[str, Description] = {}
        self._asked_at: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def describe(self, template: Template) -> Description | None:
        """The template's description; None while no worker replies."""
        name, now = template.name, time.monotonic()
        pause = FRESH_SECONDS if name in self._known else AGAIN_SECONDS
        if template.system:
            return None
        if name not in self._asking and now - self._asked_at.get(name, float("-inf")) >= pause:
            self._asked_at[name] = now
            task = self._asking[name] = asyncio.create_task(self._ask(name))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        if name not in self._known and (asking := self._asking.get(name)):
            await asyncio.wait([asking])
        return self._known.get(name)

    async def _ask(self, name: str) -> None:
        try:
            self._known[name] = await drive(self._flows.describe(name, ASK_SECONDS), self._flows)
        except BedsError as error:
            logger.warning("the objects of %s are not known: %s", name, error.message)

    async def types_of(self, template: Template, using: str, names: Mapping[str, str]) -> dict[str, Argument]:
        """The arguments of a fetch that are given by name, as far as they are known."""
        spec = template.fetch_spec(using)
        found = {name: argument for name in names if (argument := _known(template, spec, name)) is not None}
        if len(found) < len(names) and (description := await self.describe(template)) is not None:
            operation = description.operations.get(f"fetch.{using}")
            found |= {arg.name: arg for arg in (operation.args if operation else ()) if arg.name in names}
        return found

    async def operation(self, template: Template, table: str) -> OperationDescription | None:
        """The description of the operation of a table, such as `fetch.by_route`."""
        description = await self.describe(template)
        return description.operations.get(table) if description else None


def _known(template: Template, spec: FetchSpec, name: str) -> Argument | None:
    found: FieldSpec | None = spec.args.get(name) or template.fields.get(name)
    if found is None:
        return None
    return Argument(name, (found.type,), found.type, False, found.sensitive, found.description)
