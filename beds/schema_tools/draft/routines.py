"""Templates for the procedures, functions and views that a database has already."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from beds.adapters.mariadb import definition
from beds.adapters.mariadb.signatures import PREFIX
from beds.schema_tools.draft.catalogue import Parameter, Routine, Table
from beds.schema_tools.draft.fields import field_of, limits_of, type_of
from beds.schema_tools.draft.naming import is_plain
from beds.schema_tools.draft.template import MAX_RECORDS, CannotDraft, FetchDraft, FieldDraft, TemplateDraft, one_line
from beds.schema_tools.rel import ends_transaction

_CONTROL = re.compile(
    r"\s*(?:(?:`[^`]+`|\w+)\s*:\s*)?(?:"
    r"(?P<open>BEGIN(?:\s+NOT\s+ATOMIC)?|REPEAT|LOOP)\b"
    r"|(?P<branch>IF\b.*?\bTHEN\b|CASE\b.*?\bTHEN\b)"
    r"|(?P<other>ELSEIF\b.*?\bTHEN\b|WHEN\b.*?\bTHEN\b|ELSE\b)"
    r"|(?P<loop>WHILE\b.*?\bDO\b|FOR\b.*?\bDO\b)"
    r"|(?P<handler>DECLARE\s+\w+\s+HANDLER\s+FOR\b"
    r"(?:(?!\b(?:SET|INSERT|REPLACE|UPDATE|DELETE|SIGNAL|RESIGNAL|ROLLBACK|LEAVE|IF)\b)[\w\s,])*?"
    r"(?=\b(?:BEGIN|SELECT|CALL)\b))"
    r"|(?P<end>END\s+(?:IF|CASE))\b"
    r"|(?P<ended>END\s+(?:LOOP|WHILE|REPEAT|FOR))\b|(?P<until>UNTIL\b.*?END\s+REPEAT)\b"
    r")",
    re.IGNORECASE | re.DOTALL,
)
_SELECT = re.compile(r"\s*\(*\s*(?:SELECT|WITH|VALUES|SHOW)\b", re.IGNORECASE)
_NO_WRITE = re.compile(
    r"`[^`]*`|\b(?:CALL|HANDLER)\b|\b(?:REPLACE|INSERT|TRUNCATE)\s*\(|\bFOR\s+UPDATE\b", re.IGNORECASE
)
"""What looks like a write: names, calls that are followed, functions of MariaDB, and a lock."""
_SEQUENCE = re.compile(r"\b(?:NEXTVAL|SETVAL|NEXT\s+VALUE\s+FOR)\b", re.IGNORECASE)
_CALLED = re.compile(r"`?(\w+)`?\s*\(")
_KEY = re.compile(r"(?:id|key|no|nr|number|code)\Z", re.IGNORECASE)
_INTO = re.compile(r"\bINTO\b", re.IGNORECASE)
_LEAVES = re.compile(r"\s*LEAVE\b", re.IGNORECASE)
_CALL = re.compile(r"\s*CALL\s+(?:(?:`[^`]+`|\w+)\s*\.\s*)?(`[^`]+`|\w+)", re.IGNORECASE)
_FROM = re.compile(r"\bFROM\s+(?:(?:`[^`]+`|\w+)\s*\.\s*)?(`[^`]+`|\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class ResultSets:
    """What a procedure returns, by its text.

    Args:
        tables: for each result set, the first table that it is read from; empty where there is none.
        is_certain: false if a loop or a branch decides how many there are.
    """

    tables: tuple[str, ...] = ()
    is_certain: bool = True

    def names(self) -> list[str]:
        """A name for each result set: that of its table, if they differ."""
        differ = len({table.casefold() for table in self.tables}) == len(self.tables)
        if self.is_certain and differ and all(is_plain(table) for table in self.tables):
            return list(self.tables)
        return [f"set_{number}" for number in range(1, len(self.tables) + 1)]


class Routines:
    """The procedures and functions of a database, which may call each other."""

    def __init__(self, routines: Sequence[Routine]) -> None:
        self._procedures = {each.name.casefold(): each for each in routines if each.kind == "procedure"}
        self._functions = {each.name.casefold(): each for each in routines if each.kind == "function"}

    def draft(self, routine: Routine, name: str) -> TemplateDraft:
        """Bind a routine as it is. Raises CannotDraft."""
        fields = self._fields(routine)
        self._refuse(routine)
        if routine.kind == "function":
            return self._reading(routine, name, fields, ResultSets())
        sets = self.result_sets(routine)
        if not self.may_write(routine):
            return self._reading(routine, name, fields, sets)
        if len(sets.tables) > 1:
            raise CannotDraft("it writes, and returns several result sets; a write returns one at most")
        return self._writing(routine, name, fields)

    def may_write(self, routine: Routine) -> bool:
        """Whether it, or a routine that it calls, may change data."""
        return any(each is None or _writes(each) for each in self._reached(routine))

    def view_writes(self, view: Table) -> bool:
        """Whether a view calls a function that changes data."""
        return any(self.may_write(each) for each in self._functions_in(view.text))

    def _functions_in(self, code: str) -> list[Routine]:
        called = {name.casefold() for name in _CALLED.findall(code)}
        return [self._functions[name] for name in sorted(called & self._functions.keys())]

    def result_sets(self, routine: Routine) -> ResultSets:
        """The result sets of a procedure, those of the procedures that it calls included."""
        return self._sets(routine, ())

    def _refuse(self, routine: Routine) -> None:
        if not is_plain(routine.name):
            raise CannotDraft(
                "a template cannot name it: letters, digits and _, beginning with a letter; wrap or rename it"
            )
        if not routine.body:
            raise CannotDraft("its text cannot be read: let the account that runs `beds schema apply` own it")
        if routine.security.upper() == "INVOKER":
            raise CannotDraft("it runs with its caller's rights (SQL SECURITY INVOKER), and the brokers have none")
        writes = routine.kind == "procedure" and self.may_write(routine)
        if any(each is not None and ends_transaction(each.body, each.sql_mode) for each in self._reached(routine)):
            raise CannotDraft(
                "it commits, or runs DDL or dynamic SQL, or calls one that does: that ends the transaction"
            )
        if routine.kind == "function" and self.may_write(routine):
            raise CannotDraft("it is a function that writes; only a procedure's writes can be repeated without harm")
        if writes and not definition.is_strict(routine.sql_mode):
            raise CannotDraft("it writes, and was made without strict mode: it would cut what does not fit in silence")

    def _reached(self, routine: Routine) -> Iterator[Routine | None]:
        """The routine, and all that it calls; None for a procedure that is not in this database."""
        found: dict[str, Routine | None] = {}
        waiting: list[Routine | None] = [routine]
        while waiting:
            each = waiting.pop()
            key = f"{each.kind} {each.name.casefold()}" if each else ""
            if key in found:
                continue
            found[key] = each
            if each is not None:
                waiting += [self._procedures.get(name.casefold()) for name in definition.called(each.body)]
                waiting += self._functions_in(_code(each))
        yield from found.values()

    def _sets(self, routine: Routine, above: tuple[str, ...]) -> ResultSets:
        if routine.name in above:
            return ResultSets((), is_certain=False)
        tables: list[str] = []
        branches: list[tuple[list[str], list[str], list[str]]] = []
        is_certain, loops = True, 0
        for kind, text in _statements(_code(routine)):
            if kind == "branch":
                branches.append((tables, [], []))
                tables = []
            elif kind in ("other", "end") and branches:
                before, longest, _ = branches.pop()
                is_certain = is_certain and not (tables or longest)
                longest = max(longest, tables, key=len)
                tables = []
                if kind == "end":
                    tables = [*before, *longest]
                else:
                    branches.append((before, longest, []))
            elif kind == "handler" or (kind == "statement" and loops <= 0 and _LEAVES.match(text)):
                is_certain = False
            elif kind in ("loop", "ended", "until"):
                loops += 1 if kind == "loop" else -1
            elif kind == "statement" and _SELECT.match(text) and not _INTO.search(_outside(text)):
                is_certain = is_certain and loops <= 0
                found = _FROM.search(_outside(text))
                tables.append(found[1].strip("`") if found else "")
            elif kind == "statement" and (call := _CALL.match(text)):
                callee = self._procedures.get(call[1].strip("`").casefold())
                inner = self._sets(callee, (*above, routine.name)) if callee else ResultSets((), is_certain=False)
                is_certain = is_certain and inner.is_certain and (loops <= 0 or not inner.tables)
                tables += inner.tables
        return ResultSets(tuple(tables), is_certain)

    @staticmethod
    def _fields(routine: Routine) -> dict[str, tuple[Parameter, FieldDraft]]:
        found: dict[str, tuple[Parameter, FieldDraft]] = {}
        for parameter in routine.parameters:
            name = parameter.name.removeprefix(PREFIX)
            kind = type_of(parameter.type)
            if name.lower() in {each.lower() for each in found}:
                raise CannotDraft(f"two of its parameters would be the field {name}")
            if not is_plain(name):
                raise CannotDraft(
                    f"its parameter {parameter.name} is no name of a field: letters, digits, _, a letter first"
                )
            if not kind:
                raise CannotDraft(f"BEDS has no type for its parameter {parameter.name}, {parameter.type.declared}")
            remarks = [f"{parameter.mode.upper()} {parameter.name} {one_line(parameter.type.declared)}"]
            found[name] = parameter, FieldDraft(kind, limits_of(parameter.type, kind), remarks)
        return found

    def _reading(
        self, routine: Routine, name: str, fields: Mapping[str, tuple[Parameter, FieldDraft]], sets: ResultSets
    ) -> TemplateDraft:
        results = sets.names() if len(sets.tables) > 1 else []
        fetch = FetchDraft(routine.name, results=results, max_limit=MAX_RECORDS)
        remarks = [
            "Its arguments are the parameters. `optional = [...]` lists those that a caller may leave out, as null.",
        ]
        if not sets.is_certain:
            remarks.append("A branch or a loop decides how many result sets it returns: check `results`.")
        return _checked(
            TemplateDraft(
                name,
                "rel",
                [_key(fields)],
                f"{routine.kind} {routine.name}",
                one_line(routine.comment),
                fetches={"call": fetch},
                fields=_own(fields) or {"result": FieldDraft("string")},
                remarks=remarks,
            )
        )

    def _writing(
        self, routine: Routine, name: str, fields: Mapping[str, tuple[Parameter, FieldDraft]]
    ) -> TemplateDraft:
        key = _key(fields)
        taken = {
            each: FieldDraft(of.type, {**of.keys, "required": True} if parameter.mode == "in" else of.keys, of.remarks)
            for each, (parameter, of) in fields.items()
            if parameter.mode != "out" or each == key
        }
        remarks = [
            "create_record calls it, once for each event. Without `required` a caller may leave it out, as null.",
        ]
        return _checked(
            TemplateDraft(
                name,
                "rel",
                [key],
                f"procedure {routine.name}",
                one_line(routine.comment),
                writes={"create": routine.name},
                fields=taken or {"result": FieldDraft("string")},
                remarks=remarks,
            )
        )


def draft_view(view: Table, writes: bool, name: str) -> TemplateDraft:
    """Bind a view as it is; `writes` if it calls a function that does. Raises CannotDraft."""
    if not is_plain(view.name):
        raise CannotDraft("a template cannot name it: letters, digits and _, beginning with a letter")
    if view.problem:
        raise CannotDraft(f"it cannot be read: {view.problem}")
    if writes:
        raise CannotDraft("it calls a function that writes; a read may be repeated")
    if view.security.upper() == "INVOKER":
        raise CannotDraft("it runs with its caller's rights (SQL SECURITY INVOKER), and the brokers have none")
    fields, remarks = {}, ["A view has no key; `key` only names its first field."]
    for column in view.columns:
        found = field_of(column)
        if found is None or found.name != column.name:
            remarks.append(f"Column {one_line(column.name)} is returned, and has no field.")
            continue
        fields[found.name] = FieldDraft(found.type, {"description": one_line(column.comment)} if column.comment else {})
    if not fields:
        raise CannotDraft("none of its columns has a name that a field may have")
    return _checked(
        TemplateDraft(
            name,
            "rel",
            [next(iter(fields))],
            f"view {view.name}",
            one_line(view.comment),
            fetches={"all": FetchDraft(view.name, max_limit=MAX_RECORDS)},
            fields=fields,
            remarks=remarks,
        )
    )


def _own(fields: Mapping[str, tuple[Parameter, FieldDraft]]) -> dict[str, FieldDraft]:
    return {name: of for name, (_, of) in fields.items()}


def _key(fields: Mapping[str, tuple[Parameter, FieldDraft]]) -> str:
    """The field that names a record in replies: an OUT parameter that sounds like a key, or the first parameter."""
    ids = [name for name, (parameter, _) in fields.items() if parameter.mode == "out" and _KEY.search(name)]
    return next(iter([*ids, *fields]), "result")


def _checked(draft: TemplateDraft) -> TemplateDraft:
    if problem := draft.problem():
        raise CannotDraft(problem)
    return draft


def _code(routine: Routine) -> str:
    return definition.code_of(routine.body, routine.sql_mode)


def _writes(routine: Routine) -> bool:
    """Whether a routine itself changes data, by its text or by what the DBA declared.

    Its calls are followed, and its error handlers change nothing.
    """
    code = _NO_WRITE.sub("", _code(routine))
    return routine.access == "MODIFIES SQL DATA" or definition.may_write(code) or _SEQUENCE.search(code) is not None


def _outside(text: str) -> str:
    """A statement without what stands in parentheses."""
    while (shorter := re.sub(r"\([^()]*\)", " ", text)) != text:
        text = shorter
    return text


def _statements(code: str) -> Iterator[tuple[str, str]]:
    """The statements of a routine, and the beginnings and ends of its branches and loops."""
    for part in code.split(";"):
        rest = part
        while found := _CONTROL.match(rest):
            kind = found.lastgroup or ""
            yield ("loop" if kind == "open" and found["open"].upper() in ("LOOP", "REPEAT") else kind), found[0]
            rest = rest[found.end() :]
        yield "statement", rest
