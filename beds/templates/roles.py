"""What the roles of `[http.roles]` may name: operations and fetches of templates, jobs, lineage."""

from __future__ import annotations

from collections.abc import Mapping

from beds.config.http import OPS, Http
from beds.domain.change import CHANGES
from beds.domain.event import Operation
from beds.errors import ConfigurationError, nearest
from beds.templates.registry import TemplateRegistry
from beds.templates.template import Template

WRITES: Mapping[str, Operation] = {
    "create": Operation.CREATE,
    "create_many": Operation.CREATE_MANY,
    "update": Operation.UPDATE,
    "delete": Operation.DELETE,
}
READ = "read"
JOBS, LINEAGE, OWN = "jobs", "lineage", "own"


def names_of(template: Template) -> list[str]:
    """The operations and fetches of a template, as `allow` names them."""
    operations = template.operations()
    writes = [name for name, operation in WRITES.items() if operation in operations]
    return [*writes, *(name for name, spec in template.fetch.items() if not spec.internal)]


def check_roles(http: Http, templates: TemplateRegistry) -> None:
    """Raises ConfigurationError: a role names something that does not exist, or BEDS's own records without `ops`."""
    for name, role in http.roles.items():
        for entry in role.allow:
            where = f"[http.roles.{name}] allow {entry!r}"
            kind, _, what = entry.partition(":")
            if entry == "*":
                continue
            if kind in (JOBS, LINEAGE):
                known = ["*", *templates.jobs] if kind == JOBS else [OWN, "*"]
            elif kind not in templates:
                raise ConfigurationError(
                    f"{where}: there is no template {kind}{nearest(kind, templates)}", hint="`beds template list`"
                )
            else:
                if templates[kind].system and name != OPS:
                    raise ConfigurationError(f"{where}: only the role {OPS} may see the records of BEDS itself")
                known = ["*", READ, *names_of(templates[kind])]
                known += [CHANGES] if templates[kind].keeps_changes else []
            if what == CHANGES and role.bind:
                raise ConfigurationError(f"{where}: a change does not say whose record it is, so bind cannot limit it")
            if what not in known:
                raise ConfigurationError(
                    f"{where}: {kind} has no {what}{nearest(what, known)}", hint=f"it has: {', '.join(known)}"
                )
