"""Maps a record of the source to a record of the target, and compares two records by content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from beds.domain.reply import Record
from beds.errors import BedsError, InvalidPayload, UnknownField
from beds.services.audit import MASK
from beds.templates.rules import JobRule
from beds.templates.template import Template

MOST_SAMPLES = 5
"""Records that a dry run shows."""


class RecordMap:
    """The fields of the target, each with where its value comes from.

    Args:
        source, target: the templates.
        fields: the source's field for each field of the target.
        constants: the values of fields that the source lacks.
        dropped: fields of the source that the target does not get.
    """

    def __init__(
        self,
        source: Template,
        target: Template,
        fields: Mapping[str, str],
        constants: Mapping[str, Any],
        dropped: frozenset[str],
    ) -> None:
        self.source, self.target = source, target
        self._pairs = [(name, of) for name, of in fields.items()]
        self._constants = {name: _as_field(target, name, value) for name, value in constants.items()}
        self._known = frozenset(fields.values()) | dropped
        self._source_of = dict(fields)

    @classmethod
    def of(cls, rule: JobRule, source: Template, target: Template) -> RecordMap:
        fields = {
            name: rule.source_field(name)
            for name in target.fields
            if name not in rule.default and rule.source_field(name) in source.fields
        }
        return cls(source, target, fields, rule.default, frozenset(rule.job.drop))

    @classmethod
    def same(cls, template: Template) -> RecordMap:
        """The map of a template to itself."""
        return cls(template, template, {name: name for name in template.fields}, {}, frozenset())

    def reversed(self) -> RecordMap:
        """The map that leads back; constants are left out."""
        back = {of: name for name, of in self._pairs}
        return RecordMap(self.target, self.source, back, {}, frozenset(self._constants))

    def apply_each(self, records: Iterable[Record]) -> Iterator[Record | BedsError]:
        """Each record as the target takes it, checked against its template; or its error.

        An UnknownField if a field would go nowhere, else an InvalidPayload that names the field.
        """
        picked: list[Record | BedsError] = []
        for record in records:
            try:
                picked.append(self._pick(record))
            except UnknownField as error:
                picked.append(error)
        doubtful = self.target.doubtful_fields([found for found in picked if isinstance(found, dict)])
        for found in picked:
            try:
                yield found if isinstance(found, BedsError) else self.target.check_create(found, "record", doubtful)
            except InvalidPayload as error:
                yield error

    def _pick(self, record: Record) -> Record:
        if not record.keys() <= self._known:
            name = min(record.keys() - self._known)
            raise UnknownField(
                f"the record has the field {name}, which is no field of template {self.source.name}",
                detail={"field": name},
                hint=f"add it to {self.source.file.name or 'the template'}, or remove it from the record",
            )
        found = {name: record[of] for name, of in self._pairs if of in record}
        return {**found, **self._constants} if self._constants else found

    def key_in_target(self, record: Record) -> tuple[Any, ...]:
        """A source record's key, in the order of the target's key fields."""
        return tuple(record[self._source_of[name]] for name in self.target.keys)

    def key_in_source(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        """A key of the target, in the order of the source's key fields."""
        by_name = {self._source_of[name]: value for name, value in zip(self.target.keys, key, strict=True)}
        return tuple(by_name[name] for name in self.source.keys)


def masked(template: Template, records: Sequence[Record]) -> list[Record]:
    """The first records, without the values of sensitive fields."""
    hidden = {name: MASK for name, field in template.fields.items() if field.sensitive}
    return [
        {name: hidden.get(name, value) if value is not None else None for name, value in record.items()}
        for record in records[:MOST_SAMPLES]
    ]


def equal(wanted: Record, found: Record) -> bool:
    """True if a stored record has the content of `wanted`. A missing field equals null."""
    if wanted == found:
        return True
    if any(found.get(name) != value for name, value in wanted.items()):
        return False
    return all(value is None for name, value in found.items() if name not in wanted)


def _as_field(target: Template, name: str, value: Any) -> Any:
    """A value of a rule file in its field's type: TOML has no decimals."""
    if target.fields[name].type == "decimal" and isinstance(value, float):
        return Decimal(repr(value))
    return value
