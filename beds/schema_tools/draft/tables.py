"""A table's procedures and its template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from beds.schema_tools.draft.catalogue import Index, Table, quoted
from beds.schema_tools.draft.fields import MOMENTS, UNSHOWN, Field, field_of
from beds.schema_tools.draft.naming import stem
from beds.schema_tools.draft.template import (
    MAX_RECORDS,
    CannotDraft,
    FetchDraft,
    FieldDraft,
    TemplateDraft,
    one_line,
)
from beds.templates.binding import GIVEN_FIELDS

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WIDTH = 116
_TRANSACTIONAL = frozenset({"INNODB", "ROCKSDB"})


@dataclass(frozen=True)
class TableDraft:
    """Args:
    sql: the text of the R__ file.
    template: the template.
    objects: the names of the procedures.
    remarks: what was left out, and why.
    """

    sql: str
    template: TemplateDraft
    objects: tuple[str, ...]
    remarks: tuple[str, ...]


def draft_table(table: Table, name: str, prefix: str, reserved: frozenset[str], *, jobs: bool) -> TableDraft:
    """Draft a table's procedures and template.

    Args:
        table: from the catalogue.
        name: of the template.
        prefix: of the procedures' names.
        reserved: the words that stand in backticks as names.
        jobs: whether to draft what only jobs call, too.

    Raises:
        CannotDraft: it has no key, or BEDS has no type for a part of the key.
    """
    return _TableDrafter(table, prefix, reserved).draft(name, jobs=jobs)


class _TableDrafter:
    def __init__(self, table: Table, prefix: str, reserved: frozenset[str]) -> None:
        if not table.key:
            raise CannotDraft("it has no primary key, and no unique index without nulls: nothing identifies a record")
        self.table = table
        self.reserved = reserved
        self.base = f"{prefix}{stem(table.name)}"
        self.remarks: list[str] = []
        self.procedures: dict[str, str] = {}
        self.returned: dict[str, Field] = {}
        """The fields of a record by column; `self.fields` are those that a create takes."""
        for column in table.columns:
            found = field_of(column)
            if found is None:
                why = (
                    "information_schema shows ? for a member"
                    if column.type.members
                    else f"BEDS has no type for {column.type.declared}"
                )
                self.remarks.append(f"column {column.name} was left out: {why}")
            elif found.name.lower() in {each.name.lower() for each in self.returned.values()}:
                self.remarks.append(f"column {column.name} was left out: another field is named {found.name}")
            else:
                self.returned[column.name] = found
        for part in table.key:
            if part in self.returned and self.returned[part].type == "array":  # a SET, whose text can be compared
                self.returned[part] = replace(self.returned[part], type="string", limits={})
        self.fields = {name: found for name, found in self.returned.items() if not found.column.is_generated}
        for part in table.key:
            if part not in self.returned:
                raise CannotDraft(f"BEDS has no type for its key {part}, which is {table.column(part).type.declared}")
            if part not in self.fields:
                raise CannotDraft(f"its key {part} is computed by MariaDB")
        self.key = [self.fields[part] for part in table.key]
        if table.engine and table.engine.upper() not in _TRANSACTIONAL:
            self.remarks.append(f"{table.engine} has no transactions: what a failed or repeated write did stays")
        lost = [c.name for c in table.columns if c.needs_value and c.name not in self.fields]
        self.can_create = not lost
        if lost:
            self.remarks.append(f"no create: {', '.join(lost)} needs a value that BEDS cannot send")
        if any(each.name.lower() == GIVEN_FIELDS for each in self.returned.values()):
            raise CannotDraft(f"its column {GIVEN_FIELDS} has the name of a parameter that BEDS fills")
        self.item = self._fetch_name(self.key, ()) or "by_key"
        # A column p_x would be hidden by the parameter of a column x.
        self.qualifies = any(column.name.lower().startswith("p_") for column in table.columns)

    def draft(self, name: str, *, jobs: bool) -> TableDraft:
        writes, fetches = self._writes(), self._fetches()
        by_keys = estimate = ""
        if jobs and self.is_paged:
            fetches["range"] = self._range()
            by_keys = self._by_keys()
            estimate = f"{self.base}_count"
            if "create_many" in writes:
                writes["load"] = writes["create_many"]
            if self.table.dependents:
                self.remarks.append(
                    f"no remove_many: a delete would also change {', '.join(self.table.dependents)} (ON DELETE)"
                )
            else:
                writes["remove_many"] = self._remove_many()
        computed = [each for each in self.returned.values() if each.column.is_generated]
        template = TemplateDraft(
            name,
            "rel",
            [each.name for each in self.key],
            f"table {one_line(self.table.name)}",
            one_line(self.table.comment),
            writes=writes,
            fetches=fetches,
            by_keys=by_keys,
            estimate=estimate,
            fields={each.name: self._field(each) for each in self.fields.values()},
            item="" if self.item == _by(self.key) else self.item,
            remarks=[
                *(one_line(f"check: {check}") for check in self.table.checks),
                *(f"{each.name} is returned, and no field: MariaDB computes it" for each in computed),
            ],
        )
        if problem := template.problem():
            raise CannotDraft(problem)
        head = (
            f"-- {one_line(self.table.name)}: drafted by `beds schema draft`. Read it, change what you like, apply it."
        )
        return TableDraft(
            "\n\n".join([head, *self.procedures.values()]) + "\n", template, tuple(self.procedures), tuple(self.remarks)
        )

    def _field(self, each: Field) -> FieldDraft:
        column = each.column
        keys = dict(each.limits)
        if column.needs_value or (each in self.key and (len(self.key) > 1 or not column.is_auto)):
            keys["required"] = True
        if column.comment:
            keys["description"] = one_line(column.comment)
        remarks = list(each.remarks)
        if target := self.table.references.get(column.name):
            remarks.append(f"references {one_line(target)}")
        if each.name != column.name:
            remarks.append(f"column {one_line(column.name)}")
        return FieldDraft(each.type, keys, remarks)

    # --- Writes ------------------------------------------------------------------------------------------------------

    def _writes(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.can_create:
            found |= {"create": self._create(), "create_many": self._create_many()}
        if any(self._is_updated(each) for each in self.fields.values()):
            found["update"] = self._update()
        found["delete"] = self._counting(
            "delete",
            "DELETE",
            [f"IN {self._parameter(each)}" for each in self.key],
            "Remove a record.",
            f"DELETE FROM {self._name(self.table.name)} WHERE {self._where_key()}",
        )
        return found

    def _counting(
        self, operation: str, event: str, parameters: Sequence[str], says: str, statement: str, afterwards: str = ""
    ) -> str:
        """A procedure with one write. MariaDB would count what triggers write, too."""
        after = [afterwards] if afterwards else []
        if event in self.table.triggers and "affected" not in {each.name.lower() for each in self.returned.values()}:
            parameters = [*parameters, "OUT p_affected INT"]
            after.insert(0, "SET p_affected = ROW_COUNT()")
        if after:
            lines = "".join(f"  {line};\n" for line in after)
            statement = f"BEGIN\n{_indented(statement)};\n{lines}END"
        return self._procedure(operation, parameters, says, statement)

    def _create(self) -> str:
        made = next((each for each in self.key if each.column.is_auto), None)
        has_defaults = any(self._has_default(each) for each in self.fields.values())
        parameters = [f"{'INOUT' if each is made else 'IN'} {self._parameter(each)}" for each in self.fields.values()]
        parameters += [f"IN p_{GIVEN_FIELDS} JSON"] if has_defaults else []
        values = [self._or_default(each, f"p_{each.name}", self._is_given(each)) for each in self.fields.values()]
        insert = f"INSERT INTO {self._name(self.table.name)} ({self._columns()})\nVALUES ({_wrapped(values)})"
        own = f"p_{made.name}" if made else ""
        says = " A column that the caller leaves out gets its default." if has_defaults else ""
        keep_id = f"SET {own} = COALESCE(NULLIF({own}, 0), LAST_INSERT_ID())" if made else ""
        return self._counting("create", "INSERT", parameters, f"Add a record.{says}", insert, keep_id)

    def _create_many(self) -> str:
        values, columns = [], []
        for each in self.fields.values():
            kind, value = each.in_json(self._name(each.name))
            if self._has_default(each):
                flag = self._free(f"{each.name}_is_given")
                columns.append(f"{flag} INT EXISTS PATH '$.{each.name}'")
                value = self._or_default(each, value, flag)
            columns.append(self._json_column(each, kind))
            values.append(value)
        return self._counting(
            "create_many",
            "INSERT",
            ["IN p_records JSON"],
            "Add many records, or none.",
            f"INSERT INTO {self._name(self.table.name)} ({self._columns()})\n"
            f"SELECT {_wrapped(values)}\n  FROM {_json_table('p_records', columns)} AS record",
        )

    def _update(self) -> str:
        changed = [each for each in self.fields.values() if self._is_updated(each)]
        sets = [
            f"{self._column(each)} = IF({self._is_given(each)}, p_{each.name}, {self._column(each)})"
            for each in changed
        ]
        return self._counting(
            "update",
            "UPDATE",
            [*(f"IN {self._parameter(each)}" for each in (*self.key, *changed)), f"IN p_{GIVEN_FIELDS} JSON"],
            "Change the fields that the caller gives; a null counts as one.",
            f"UPDATE {self._name(self.table.name)}\n   SET {(',' + chr(10) + '       ').join(sets)}\n"
            f" WHERE {self._where_key()}",
        )

    def _is_updated(self, each: Field) -> bool:
        return each not in self.key and not each.column.sets_itself

    @staticmethod
    def _has_default(each: Field) -> bool:
        return bool(each.column.default) and not each.column.is_auto

    @staticmethod
    def _is_given(each: Field) -> str:
        return f"JSON_CONTAINS(p_{GIVEN_FIELDS}, '\"{each.name}\"')"

    def _or_default(self, each: Field, value: str, given: str) -> str:
        if not self._has_default(each):
            return value
        default = each.column.default
        if self._is_shown(default):
            pass
        elif not given.startswith("JSON_CONTAINS"):  # in bulk, DEFAULT would mean the column of JSON_TABLE
            self.remarks.append(f"create_many stores null where {each.name} is left out, not its default")
            return value
        else:
            default = f"DEFAULT({self._name(each.column.name)})"
        if each.column.type.name == "bit":  # IF makes text of a BIT
            value, default = f"{value} + 0", f"{default} + 0"
        return f"IF({given}, {value}, {default})"

    @staticmethod
    def _is_shown(default: str) -> bool:
        """Whether information_schema shows a default whole, and it names no other column."""
        is_text = default.startswith("'")
        return UNSHOWN not in default if is_text else not {"`", UNSHOWN} & set(default)

    # --- Reads -------------------------------------------------------------------------------------------------------

    @property
    def is_paged(self) -> bool:
        """Whether pages can be ordered by the key."""
        return all(each.is_ordered for each in self.key)

    def _fetches(self) -> dict[str, FetchDraft]:
        found = {self.item: self._one(self.item, self.key)}
        if self.is_paged:
            found["all"] = self._paged("all", [], self.key, "All records, by their key.")
        else:
            self.remarks.append("no fetch of all records: no page can begin after such a key")
        for index in self.table.indexes:
            if name_and_fetch := self._of_index(index, found):
                found |= [name_and_fetch]
        if self.is_paged and len(self.key) > 1 and not _is_moment(self.key[0]):
            first = self.key[:1]
            if (name := self._fetch_name(first, found)) and not self._clashes(first[0], self.key):
                found[name] = self._paged(name, first, self.key, f"The records of one {first[0].name}, by their key.")
        found["count"] = FetchDraft(
            self._procedure(
                "count",
                [],
                "How many records there are.",
                f"SELECT COUNT(*) AS records FROM {self._name(self.table.name)}",
            )
        )
        return found

    def _of_index(self, index: Index, known: Iterable[str]) -> tuple[str, FetchDraft] | None:
        """The fetch that an index serves; None if there is none, or it is known."""
        if index.columns == self.table.key:
            return None
        if index.kind in ("FULLTEXT", "SPATIAL", "RTREE"):
            self.remarks.append(f"no fetch for index {index.name}, which is {index.kind}")
            return None
        if any(part not in self.fields for part in index.columns):
            return None
        parts = [self.fields[part] for part in index.columns]
        if index.is_unique and not index.has_prefix and not any(each.type in ("array", "object") for each in parts):
            name = self._fetch_name(parts, known)
            return (name, self._one(name, parts)) if name else None
        first = parts[0]
        name = self._fetch_name(parts[:1], known) or self._fetch_name(parts, known)
        if not name or not self.is_paged or first.type in ("array", "object") or first.column.type.name == "float":
            return None
        rest = [each for each in parts[1:] if each.is_ordered and self._field(each).keys.get("required")]
        if self._clashes(first, [*parts, *self.key]):
            self.remarks.append(f"no fetch for index {index.name}: a parameter of pages has the name of {first.name}")
            return None
        if name != _by(parts[:1]):  # the shorter name is known
            if any(each.type in ("array", "object") or self._clashes(each, self.key) for each in parts):
                return None
            return name, self._paged(
                name, parts, self.key, f"The records of one {' and '.join(p.name for p in parts)}."
            )
        if _is_moment(first):
            leading = [first] if self._field(first).keys.get("required") else []
            order = _once([*leading, *rest, *self.key] if leading else self.key)
            return name, self._between(name, first, order)
        order = _once([*rest, *self.key])
        return name, self._paged(name, [first], order, f"The records of one {first.name}.")

    @staticmethod
    def _clashes(first: Field, order: Iterable[Field]) -> bool:
        """Whether a condition's parameter has the name of one that pages need."""
        return first.name.lower() in {"limit", *(f"after_{each.name}".lower() for each in order)}

    def _fetch_name(self, parts: Sequence[Field], known: Iterable[str]) -> str:
        """The name of a fetch by some fields; empty if it is known or too long."""
        name = _by(parts)
        # by_keys is what jobs call.
        return "" if name in known or name.lower() == "by_keys" or len(f"{self.base}_{name}") > 64 else name

    def _one(self, name: str, parts: Sequence[Field]) -> FetchDraft:
        parameters = [f"IN {self._parameter(each)}" for each in parts]
        return FetchDraft(
            self._procedure(name, parameters, "One record.", self._select([self._equals(each) for each in parts]))
        )

    def _paged(self, name: str, fixed: Sequence[Field], order: Sequence[Field], says: str) -> FetchDraft:
        return self._page(name, [f"IN {self._parameter(each)}" for each in fixed],
                          [self._equals(each) for each in fixed], order, says)  # fmt: skip

    def _between(self, name: str, moment: Field, order: Sequence[Field]) -> FetchDraft:
        """Records of a time; both its ends may be left out."""
        since, before = f"from_{moment.name}", f"before_{moment.name}"
        column = self._column(moment)
        found = self._page(
            name,
            [f"IN p_{each} {moment.parameter}" for each in (since, before)],
            [
                f"(p_{since} IS NULL OR {column} >= p_{since})",
                f"(p_{before} IS NULL OR {column} < p_{before})",
            ],
            order,
            f"The records from one {moment.name} on, and before another; either may be left out.",
        )
        args = {each: FieldDraft(moment.type) for each in (since, before)}
        return FetchDraft(found.object, found.cursor, args, (since, before))

    def _page(
        self, name: str, parameters: Sequence[str], conditions: Sequence[str], order: Sequence[Field], says: str
    ) -> FetchDraft:
        after = [f"IN p_after_{each.name} {each.parameter}" for each in order]
        return FetchDraft(
            self._procedure(
                name,
                [*parameters, *after, "IN p_limit INT"],
                says,
                self._select([*conditions, *self._after(order)], order) + " LIMIT p_limit",
            ),
            [each.name for each in order],
        )

    def _after(self, order: Sequence[Field]) -> Iterator[str]:
        """The conditions that a record comes after the last one of the page before."""
        first = order[0]
        if len(order) == 1:
            yield f"(p_after_{first.name} IS NULL OR {self._compared(first, '>', 'after')})"
            return
        # The first condition lets the index be used.
        yield f"(p_after_{first.name} IS NULL OR {self._compared(first, '>=', 'after')})"
        yield f"(p_after_{first.name} IS NULL OR {self._beyond(order, '>', '>', 'after')})"

    def _beyond(self, order: Sequence[Field], sign: str, last: str, bound: str) -> str:
        """`(a, b) > (x, y)`, as MariaDB's optimizer can use it."""
        head, *rest = order
        if not rest:
            return self._compared(head, last, bound)
        inner = self._beyond(rest, sign, last, bound)
        equal = self._compared(head, "=", bound)
        return f"{self._compared(head, sign, bound)} OR ({equal} AND {f'({inner})' if ' OR ' in inner else inner})"

    def _compared(self, each: Field, sign: str, bound: str) -> str:
        return f"{each.in_order(self._column(each))} {sign} {each.in_order(f'p_{bound}_{each.name}')}"

    # --- What jobs call ----------------------------------------------------------------------------------------------

    def _range(self) -> FetchDraft:
        bounds = [f"IN p_{bound}_{each.name} {each.parameter}" for bound in ("after", "until") for each in self.key]
        until = f"(p_until_{self.key[0].name} IS NULL OR {self._beyond(self.key, '<', '<=', 'until')})"
        return FetchDraft(
            self._procedure(
                "range",
                [*bounds, "IN p_limit INT"],
                "Records by their key.",
                self._select([*self._after(self.key), until], self.key, as_stored=True) + " LIMIT p_limit",
            ),
            [each.name for each in self.key],
            max_limit=MAX_RECORDS,
            range=True,
        )

    def _by_keys(self) -> str:
        return self._procedure(
            "by_keys",
            ["IN p_keys JSON"],
            "Some records, locked until the end of the transaction.",
            f"SELECT {self._selected(self._name(self.table.name), as_stored=True)}\n  FROM {self._wanted()} FOR UPDATE",
        )

    def _remove_many(self) -> str:
        return self._counting(
            "remove_many",
            "DELETE",
            ["IN p_keys JSON"],
            "Remove some records.",
            f"DELETE {self._name(self.table.name)}\n  FROM {self._wanted()}",
        )

    def _wanted(self) -> str:
        table = self._name(self.table.name)
        alias = "wanted_keys" if self.table.name.lower() == "wanted" else "wanted"
        columns, on = [], []
        for each in self.key:
            kind, value = each.in_json(f"{alias}.{self._name(each.name)}")
            columns.append(self._json_column(each, kind))
            if each.column.collation:
                value = f"CONVERT({value} USING {each.column.charset}) COLLATE {each.column.collation}"
            on.append(f"{table}.{self._name(each.column.name)} = {value}")
        return f"{_json_table('p_keys', columns)} AS {alias}\n  STRAIGHT_JOIN {table} ON {' AND '.join(on)}"

    # --- SQL ---------------------------------------------------------------------------------------------------------

    def _procedure(self, operation: str, parameters: Sequence[str], says: str, body: str) -> str:
        name = f"{self.base}_{operation}"
        listed = ", ".join(parameters)
        if len(listed) > 60:
            listed = f"\n  {_wrapped(parameters)}"
        self.procedures[name] = f"CREATE OR REPLACE PROCEDURE {name}({listed})\nCOMMENT '{says}'\n{body};"
        return name

    def _select(self, conditions: Sequence[str], order: Sequence[Field] = (), *, as_stored: bool = False) -> str:
        text = f"SELECT {self._selected(as_stored=as_stored)}\n  FROM {self._name(self.table.name)}"
        if conditions:
            text += "\n WHERE " + "\n   AND ".join(conditions)
        if order:
            text += "\n ORDER BY " + ", ".join(each.in_order(self._column(each)) for each in order)
        return text

    def _selected(self, table: str = "", *, as_stored: bool = False) -> str:
        """The columns to read; `as_stored` for jobs, which write them elsewhere: no computed ones, none converted."""
        owner = f"{table}." if table else ""
        listed = []
        for each in (self.fields if as_stored else self.returned).values():
            column = f"{owner}{self._name(each.column.name)}" if table else self._column(each)
            has_zero = each.column.sampled == "zero" and not as_stored
            value = f"NULLIF({column}, 0)" if has_zero else column
            is_same = each.name == each.column.name and not has_zero
            listed.append(value if is_same else f"{value} AS {self._name(each.name)}")
        return _wrapped(listed, 7)

    def _parameter(self, each: Field) -> str:
        return f"p_{each.name} {each.parameter}"

    def _equals(self, each: Field) -> str:
        return f"{self._column(each)} = p_{each.name}"

    def _where_key(self) -> str:
        return " AND ".join(self._equals(each) for each in self.key)

    def _columns(self) -> str:
        return _wrapped([self._name(name) for name in self.fields], 2)

    def _column(self, each: Field) -> str:
        name = self._name(each.column.name)
        return f"{self._name(self.table.name)}.{name}" if self.qualifies else name

    def _name(self, name: str) -> str:
        is_plain = _PLAIN.fullmatch(name) and name.upper() not in self.reserved
        return name if is_plain else quoted(name)

    def _json_column(self, each: Field, kind: str) -> str:
        refuses = "" if kind == "JSON" else " ERROR ON ERROR"
        return f"{self._name(each.name)} {kind} PATH '$.{each.name}'{refuses}"

    def _free(self, name: str) -> str:
        taken = {each.name.lower() for each in self.fields.values()}
        while name.lower() in taken:
            name = f"{name}_"
        return name


def _by(parts: Iterable[Field]) -> str:
    return f"by_{'_'.join(each.name for each in parts)}"


def _is_moment(each: Field) -> bool:
    return each.column.type.name in MOMENTS


def _once(fields: Iterable[Field]) -> list[Field]:
    return list({each.name: each for each in fields}.values())


def _json_table(source: str, columns: Sequence[str]) -> str:
    listed = ",\n         ".join(columns)
    return f"JSON_TABLE({source}, '$[*]' COLUMNS (\n         {listed}))"


def _wrapped(parts: Sequence[str], indent: int = 2) -> str:
    """Parts with commas between them, in lines of at most `_WIDTH` characters."""
    lines, line = [], ""
    for part in parts:
        if line and len(line) + len(part) + indent + 2 > _WIDTH:
            lines.append(line)
            line = ""
        line += f"{', ' if line else ''}{part}"
    return f",\n{' ' * indent}".join([*lines, line])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
