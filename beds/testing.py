"""For unit tests of code that uses BEDS: a client without RabbitMQ and without a database.

client = MemoryClient(TemplateRegistry.from_folder(Path("schema")))
client.call("create_record", "Airlines", {"carrier": "ZZ", "name": "Zed"})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beds.adapters.memory import MemoryAdapter, Stub
from beds.domain.reply import Reply, reply_from_wire
from beds.services.dispatch import carry_out
from beds.templates.call import Call, body_of, parse_operation
from beds.templates.registry import TemplateRegistry
from beds.transport import codec


class MemoryFactory:
    """Adapters over memory, one per template. Takes the place of `AdapterFactory`."""

    def __init__(self, registry: TemplateRegistry, stubs: Mapping[str, Stub] | None = None) -> None:
        self.registry = registry
        self._stubs = dict(stubs or {})
        self._adapters: dict[str, MemoryAdapter] = {}

    def adapter(self, template_name: str) -> MemoryAdapter:
        if template_name not in self._adapters:
            self._adapters[template_name] = MemoryAdapter(self.registry[template_name], self._stubs)
        return self._adapters[template_name]


class MemoryClient:
    """`Client.call` carried out in this process, with the same checks, the same errors and the same codec.

    Args:
        templates: the templates of the application.
        stubs: by object name, functions that stand for named objects which do more than compare fields; each takes the
            template's records by key and the arguments, and returns records.
    """

    def __init__(self, templates: TemplateRegistry, stubs: Mapping[str, Stub] | None = None) -> None:
        self.templates = templates
        self._factory = MemoryFactory(templates, stubs)

    def call(
        self,
        operation: str,
        template: str,
        data: Any = None,
        *,
        using: str = "",
        limit: int | None = None,
        cursor: str = "",
        timeout: float = 0.0,
    ) -> Reply:
        """As `Client.call`; `timeout` is accepted and means nothing here."""
        found = self.templates[template]
        verb = parse_operation(operation)
        body = body_of(found, verb, Call(operation, template, data, using, limit, cursor))
        reply = carry_out(self._factory, found.store, verb, template, codec.loads(codec.dumps(body)))
        return reply_from_wire(codec.loads(codec.dumps(reply.to_wire())))
