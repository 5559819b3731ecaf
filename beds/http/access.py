"""What a caller may do, and which arguments are filled for it, from the roles of `[http.roles]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from beds.config.http import OPS, HttpRole
from beds.domain.change import CHANGES
from beds.http.problems import Problem, forbidden, not_found
from beds.templates.roles import JOBS, LINEAGE, OWN, READ, WRITES, names_of
from beds.templates.template import Template
from beds.templates.text import value_of


@dataclass(frozen=True)
class Caller:
    """The sender of a request.

    Args:
        actor: `jwt:<issuer>:<subject>` or `key:<name>`; stored with every event.
        roles: those of `[http.roles]` that the caller has, by name.
        claims: what its token or key says.
    """

    actor: str
    roles: Mapping[str, HttpRole]
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _allowed: dict[tuple[str, str], tuple[HttpRole, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _seen: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def limits(self) -> HttpRole:
        """The widest limits among the roles."""
        roles = list(self.roles.values())
        if not roles:
            return HttpRole()
        return HttpRole(
            rate=max(role.rate for role in roles),
            burst=max(role.burst for role in roles),
            concurrency=max(role.concurrency for role in roles),
            streams=max(role.streams for role in roles),
        )

    def may(self, template: Template, what: str) -> bool:
        """Whether the caller may execute an operation (`create`, …) or a fetch of a template."""
        spec = template.fetch.get(what)
        if template.system and (spec is None or spec.owner is None or spec.internal):
            return False  # BEDS alone writes there, and only an operator's connection reads the records of all users
        return bool(self._allowing(template, what))

    def may_see(self, template: Template) -> bool:
        seen = self._seen.get(template.name)
        if seen is None:
            seen = self._seen[template.name] = any(
                self.may(template, name) for name in names_of(template)
            ) or self.may_follow(template)
        return seen

    def may_follow(self, template: Template) -> bool:
        """Whether the caller may read the changes of a template. A role that fills arguments reads none: a change does
        not say whose record it is."""
        if template.system or not template.keeps_changes:
            return False
        return any(not role.bind for role in self._allowing(template, CHANGES))

    def may_run(self, rule: str) -> bool:
        """Whether the caller may start a job by this rule. A role that fills arguments starts none: a job reads all."""
        return self._allows(JOBS, rule, unbound=True)

    @property
    def sees_lineage(self) -> bool:
        return self._allows(LINEAGE, OWN)

    def check(self, template: Template, what: str) -> None:
        """Raises Problem: the caller may not do this, or may not even know that it exists."""
        if not self.may(template, what):
            if not self.may_see(template):
                raise not_found()
            raise forbidden(f"execute {template.name}:{what}")

    def bound(self, template: Template, what: str) -> dict[str, Any]:
        """The arguments or fields that the caller's role fills.

        The first role that allows the operation without filling anything wins, since roles add up.

        Raises:
            Problem: the caller's token lacks the claim, or the operation cannot be limited in this way.
        """
        sources = self.bindings(template, what)
        if what in ("update", "delete") and not sources.keys() <= set(template.keys):
            # The object finds the record by its key alone, so it could be another caller's.
            raise forbidden(f"execute {template.name}:{what}: its records are not found by {', '.join(sources)}")
        return {name: self._value(template, what, name, source) for name, source in sources.items()}

    def bindings(self, template: Template, what: str) -> Mapping[str, str]:
        """Where the values come from that `bound` fills, by argument or field."""
        roles = self._allowing(template, what)
        return {} if not roles or any(not role.bind for role in roles) else roles[0].bind

    def _value(self, template: Template, what: str, name: str, source: str) -> Any:
        kind, _, given = source.partition(":")
        value: Any = self.actor if kind == "actor" else given
        if kind == "claim":
            value = self.claims.get(given)
            if value is None:
                raise Problem(403, "forbidden", f"Your token lacks the claim {given}.")
        spec = template.fields.get(name)
        if what in template.fetch:
            spec = template.fetch[what].args.get(name) or spec
        return value_of(name, value, spec.type) if spec is not None and isinstance(value, str) else value

    def _allowing(self, template: Template, what: str) -> tuple[HttpRole, ...]:
        """The caller's roles that allow something; found once for each operation that exists."""
        found = self._allowed.get((template.name, what))
        if found is None:
            found = tuple(self._find_allowing(template, what))
            if what in WRITES or what in template.fetch:  # any other name is the caller's choice, and never kept
                self._allowed[template.name, what] = found
        return found

    def _find_allowing(self, template: Template, what: str) -> Iterator[HttpRole]:
        wanted = {f"{template.name}:{what}", f"{template.name}:*"}
        if what not in WRITES:
            wanted.add(f"{template.name}:{READ}")
        if not template.system:
            wanted.add("*")
        for name, role in self.roles.items():
            if (name == OPS or not template.system) and wanted & set(role.allow):
                yield role

    def _allows(self, kind: str, name: str, *, unbound: bool = False) -> bool:
        wanted = {f"{kind}:{name}", f"{kind}:*", "*"}
        return any(wanted & set(role.allow) and not (unbound and role.bind) for role in self.roles.values())
