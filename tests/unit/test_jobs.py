"""Jobs without servers: rules, mapping, files, merging, schedules, windows, and chunks over memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from beds.adapters.memory import MemoryAdapter
from beds.config.sections import Node
from beds.domain.identity import ObjectId
from beds.domain.job import Job, JobKind, JobState, Lane, Tally
from beds.domain.reply import Record
from beds.errors import (
    BedsError,
    MissingField,
    OutOfRange,
    ResultTooLarge,
    RuleError,
    SchemaMismatch,
    UnknownField,
    UnknownRule,
)
from beds.services.jobs.aggregate import merged
from beds.services.jobs.jobs import rule_of, settings_of
from beds.services.jobs.mapping import RecordMap, equal
from beds.services.jobs.move import Move
from beds.services.jobs.parquet import ParquetFormat, content_sum, folder_of
from beds.services.jobs.schedule import Schedule
from beds.services.jobs.throttle import Throttle
from beds.services.jobs.work import Chunk
from beds.templates.registry import TemplateRegistry
from beds.templates.rules import JobRule, Merge, Run, load_rule
from beds.templates.template import Template, load_template
from tests.conftest import ROOT

FIELDS = """
[fields.id]
type = "integer"
required = true
[fields.amount]
type = "integer"
"""
TABLES = """
[fetch.range]
object = "range"
cursor = ["id"]
range = true
args = {below = {type = "integer"}, since = {type = "datetime", required = true}}
optional = ["below"]
[load]
object = "load"
[by_keys]
object = "by_keys"
[remove_many]
object = "remove_many"
"""


def template(tmp_path: Path, name: str, more: str = "", tables: str = TABLES, fields: str = FIELDS) -> Template:
    file = tmp_path / f"{name}.toml"
    file.write_text(f'[template]\nname = "{name}"\nstore = "rec"\nkey = "id"\n{tables}{fields}{more}')
    return load_template(file)


def rule(tmp_path: Path, text: str, name: str = "job") -> JobRule:
    file = tmp_path / f"{name}.toml"
    file.write_text(text)
    return load_rule(file)


MOVE = '[job]\nkind = "migrate"\nfrom = "A"\nread = "range"\nto = "B"\n[args]\nsince = {ago_days = 1}\n'


def test_the_sample_rules_load() -> None:
    assert sorted(TemplateRegistry.from_folder(ROOT / "schema").jobs) == [
        "delay_report", "delay_report_documents", "flights_from_documents", "flights_to_documents", "weather_cold",
        "weather_cool", "weather_to_rows",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (MOVE.replace("migrate", "migrat"), "job.kind"),
        (MOVE + "[run]\nparalel = 2\n", "did you mean 'parallel'"),
        (MOVE + "[run]\nparallel = 0\n", "run.parallel"),
        (MOVE + '[run]\nverify = "some"\n', "run.verify"),
        (MOVE.replace('to = "B"\n', ""), "names the template to load"),
        (MOVE.replace("migrate", "aggregate"), "writes to no template"),
        (MOVE.replace("migrate", "warehouse").replace('to = "B"', 'to = "B"\ncold = "x"'), "names one of them"),
        (MOVE + "[parts]\nn = {from = 1, to = 2}\n", "for aggregations"),
        (MOVE + "[keep]\ndays = 3\n", "for files"),
        (MOVE + '[schedule]\nat = "24:30"\n', "schedule.at"),
        ('[job]\nkind = "aggregate"\nfrom = "A"\nread = "r"\n[parts]\nn = {from = 9, to = 2}\n', "parts.n"),
        (MOVE.replace("ago_days", "ago_day"), "did you mean 'ago_days'"),
        (MOVE.replace("= 1}", '= "1"}'), "args.ago_days"),
        (MOVE + '[schedule]\nat = "02:00"\nwindow = "02:00-02:00"\n', "never opens"),
        ("[job", "cannot be read"),
    ],
)
def test_a_wrong_rule_names_its_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(RuleError) as refused:
        rule(tmp_path, text)
    assert "job.toml" in refused.value.message
    assert named in refused.value.message


@pytest.mark.parametrize(
    ("text", "target", "named"),
    [
        (MOVE.replace('from = "A"', 'from = "C"'), {}, "no template 'C'"),
        (MOVE.replace('read = "range"', 'read = "rang"'), {}, "did you mean 'range'"),
        (MOVE, {"tables": TABLES.replace("[load]", "[create_many]")}, "[load]"),
        (MOVE, {"fields": FIELDS.replace("amount", "sum")}, "goes nowhere"),
        (MOVE + '[map]\nsum = "amoun"\n', {"fields": FIELDS.replace("amount", "sum")}, "did you mean 'amount'"),
        (MOVE + '[map]\nsome = "amount"\n', {}, "map.some"),
        (MOVE, {"more": '[fields.must]\ntype = "string"\nrequired = true\n'}, "map.must"),
        (MOVE, {"fields": FIELDS.replace('amount]\ntype = "integer"', 'amount]\ntype = "string"')}, "is string"),
        (MOVE + "[default]\nid = 5\n", {}, "goes nowhere"),
        (MOVE + "[default]\nmust = 5\n", {"more": '[fields.must]\ntype = "string"\n'}, "default.must"),
        (MOVE + "[run]\nrecords = 5000\n", {}, "max_limit"),
        (MOVE.replace("[args]\nsince = {ago_days = 1}\n", '[schedule]\nat = "02:00"\n'), {}, "nobody gives it"),
        (MOVE.replace("since = {ago_days = 1}", 'since = "x"'), {}, "args"),
        (MOVE.replace("since", "sinc"), {}, "args.sinc"),
        (MOVE.replace("migrate", "warehouse").replace('to = "B"', 'cold = "x"\npartition = ["list"]'), {}, "list"),
    ],
)
def test_a_rule_that_does_not_fit_its_templates_is_refused(
    tmp_path: Path, text: str, target: dict[str, str], named: str
) -> None:
    templates = {"A": template(tmp_path, "A"), "B": template(tmp_path, "B", **target)}
    with pytest.raises(RuleError) as refused:
        rule(tmp_path, text).check(templates)
    assert named in refused.value.message


def test_arguments_are_the_callers_then_the_rules(tmp_path: Path) -> None:
    source, found = template(tmp_path, "A"), rule(tmp_path, MOVE)
    moment = datetime(2026, 3, 2, tzinfo=UTC)
    assert found.arguments(source, {}, moment) == {"since": datetime(2026, 3, 1, tzinfo=UTC)}
    assert found.arguments(source, {"since": moment, "below": 3}, moment) == {"since": moment, "below": 3}
    with pytest.raises(UnknownField, match="did you mean 'below'"):
        found.arguments(source, {"belo": 3}, moment)
    with pytest.raises(MissingField, match="since"):
        rule(tmp_path, MOVE.replace("since = {ago_days = 1}", "")).arguments(source, {}, moment)


def test_a_rule_is_kept_with_its_job(tmp_path: Path) -> None:
    found = rule(tmp_path, MOVE + '[map]\namount = "amount"\n[run]\nverify = 0.5\n')
    job = Job("u", "g", 0, "job", JobKind.MIGRATE, JobState.RUNNING, settings_of(found))
    assert rule_of(job).model_dump() == found.model_dump()


def test_a_rule_with_a_mistake_is_not_unknown(tmp_path: Path) -> None:
    schema = tmp_path / "schema"
    for folder in ("templates", "jobs"):
        (schema / folder).mkdir(parents=True)
    template(schema / "templates", "A")
    (schema / "jobs" / "old_ones.toml").write_text(MOVE.replace("read", "reed"))
    registry = TemplateRegistry.from_folder(schema, strict=False)
    with pytest.raises(RuleError, match=r"old_ones\.toml: .*unknown key; did you mean 'read'"):
        registry.jobs["old_ones"]
    assert len(registry.broken) == 1


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(UnknownRule, match="did you mean 'weather_cool'"):
        TemplateRegistry.from_folder(ROOT / "schema").jobs["weather_colt"]


# --- files ------------------------------------------------------------------------------------------------------------

ALL_TYPES: Mapping[str, Any] = {
    "string": "ä\x00😀", "integer": -(2**63), "number": 0.1, "decimal": Decimal("1.10"), "boolean": True,
    "datetime": datetime(1582, 10, 15, 1, 2, 3, 456789, tzinfo=UTC), "date": date(9999, 12, 31),
    "time": time(23, 59, 59, 999999), "duration": timedelta(days=-3, microseconds=1), "uuid": UUID(int=5),
    "bytes": b"\x00\xff", "object_id": ObjectId("0123456789abcdef01234567"),
    "object": {"a": [1, {"$b": None}], "at": datetime(2024, 1, 1, tzinfo=UTC)}, "array": [1, "x", None],
}  # fmt: skip


@pytest.fixture
def every_type(tmp_path: Path) -> Template:
    fields = "".join(f'[fields.f_{kind}]\ntype = "{kind}"\n' for kind in ALL_TYPES)
    fields += '[fields.exact]\ntype = "decimal"\ndigits = 12\nscale = 2\n'
    return template(tmp_path, "All", more=fields)


def test_files_keep_every_type_and_the_difference_of_null_and_missing(every_type: Template) -> None:
    files = ParquetFormat(every_type)
    full = {"id": 1, **{f"f_{kind}": value for kind, value in ALL_TYPES.items()}, "exact": Decimal("-99.99")}
    nulls = {**dict.fromkeys(full, None), "id": 2}
    records: list[Record] = [full, nulls, {"id": 3}]
    assert not files.doubtful_fields(records)
    back = files.read(files.write(records))
    assert [{k: v for k, v in b.items() if k in r} for r, b in zip(records, back, strict=True)] == records
    assert set(back[2]) == {"id"}
    assert str(back[0]["f_decimal"]) == "1.10"
    assert content_sum(records) == content_sum(back[::-1])
    assert content_sum(records) != content_sum([full])


@pytest.mark.parametrize(
    ("field", "value"), [("f_integer", 2**63), ("exact", Decimal("1.234")), ("exact", Decimal("99999999999"))]
)
def test_a_value_that_a_file_does_not_keep_is_refused(every_type: Template, field: str, value: Any) -> None:
    files, bad = ParquetFormat(every_type), {"id": 1, field: value}
    doubtful = files.doubtful_fields([{"id": 2}, bad, {"id": 3, "surplus": 1}])
    assert doubtful == {field}
    with pytest.raises(OutOfRange) as refused:
        files.check(bad, doubtful)
    assert refused.value.detail["field"] == field
    with pytest.raises(UnknownField):
        files.check({"id": 3, "surplus": 1}, doubtful)


def test_folders_are_hives_and_hold_no_path() -> None:
    record = {"origin": "../JFK", "at": datetime(2013, 2, 3, tzinfo=UTC), "no": None}
    assert folder_of(["origin", "year(at)", "month(at)"], record) == "origin=..%2FJFK/year_of_at=2013/month_of_at=2"
    assert folder_of(["no"], record) == "no=__HIVE_DEFAULT_PARTITION__"
    assert folder_of([], record) == ""


# --- mapping and merging ----------------------------------------------------------------------------------------------


def applied(record_map: RecordMap, record: Record) -> Record:
    (found,) = record_map.apply_each([record])
    if isinstance(found, BedsError):
        raise found
    return found


def test_a_map_leads_there_and_back(tmp_path: Path) -> None:
    source = template(tmp_path, "A")
    target = template(tmp_path, "B", fields=FIELDS.replace("amount", "sum"), more='[fields.by]\ntype = "string"\n')
    there = RecordMap.of(rule(tmp_path, MOVE + '[map]\nsum = "amount"\n[default]\nby = "a"\n'), source, target)
    assert applied(there, {"id": 1, "amount": 5}) == {"id": 1, "sum": 5, "by": "a"}
    assert applied(there, {"id": 1}) == {"id": 1, "by": "a"}
    assert applied(there.reversed(), {"id": 1, "sum": 5, "by": "a"}) == {"id": 1, "amount": 5}
    with pytest.raises(UnknownField, match="surplus"):
        applied(there, {"id": 1, "surplus": 2})


def test_a_missing_field_equals_null_and_nothing_else() -> None:
    assert equal({"id": 1, "a": None}, {"id": 1})
    assert equal({"id": 1}, {"id": 1, "a": None})
    assert not equal({"id": 1}, {"id": 1, "a": 0})
    assert not equal({"id": 1, "a": 1}, {"id": 1})


def test_parts_are_merged_in_order_and_nulls_are_left_out() -> None:
    merge = Merge(by=("k",), sum=("n",), min=("least",), max=("most",))
    rows: list[Record] = [
        {"k": "b", "n": 1, "least": 5, "most": None},
        {"k": "a", "n": 2, "least": None, "most": 1},
        {"k": "b", "n": 3, "least": 4, "most": 9},
        {"k": None, "n": 1, "least": 1, "most": 1},
    ]
    assert merged(merge, rows) == [
        {"k": "a", "n": 2, "least": None, "most": 1},
        {"k": "b", "n": 4, "least": 4, "most": 9},
        {"k": None, "n": 1, "least": 1, "most": 1},
    ]
    with pytest.raises(SchemaMismatch, match="'n'"):
        merged(merge, [{"k": 1, "least": 1, "most": 1}])


def test_a_merged_result_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beds.services.jobs.aggregate.MOST_MERGED", 2)
    with pytest.raises(ResultTooLarge):
        merged(Merge(by=("k",)), [{"k": n} for n in range(3)])


# --- schedules --------------------------------------------------------------------------------------------------------


class _Runs:
    """msJobs, as a schedule uses it: the first of two runs of one guid is kept."""

    def __init__(self) -> None:
        self.kept: dict[str, Job] = {}

    def last_of(self, name: str) -> Job | None:
        return None

    def last_due(self, name: str) -> datetime | None:
        return max((job.due_at for job in self.kept.values() if job.due_at), default=None)

    def start_scheduled(self, job: Job, rule: JobRule) -> None:
        self.kept.setdefault(job.guid, job)


def _schedule(tmp_path: Path, runs: _Runs, moment: list[datetime], missed: str = "once") -> Schedule:
    registry = TemplateRegistry()
    for name in ("A", "B"):
        registry._add(template(tmp_path, name))
    registry.jobs = type(registry.jobs)(
        {"job": rule(tmp_path, MOVE + f'[schedule]\nat = "02:30"\nmissed = "{missed}"\n')}
    )
    node = Node(name="one", environment="test")
    return Schedule(node, "beds_worker", registry, runs, runs, lambda: moment[0])  # type: ignore[arg-type]


def test_two_nodes_and_one_due_rule_are_one_run(tmp_path: Path) -> None:
    runs, moment = _Runs(), [datetime(2026, 5, 1, 2, 31, tzinfo=UTC)]
    for _ in range(2):
        _schedule(tmp_path, runs, moment).start_due()
    (job,) = runs.kept.values()
    assert job.due_at == datetime(2026, 5, 1, 2, 30, tzinfo=UTC)
    assert UUID(job.guid).version == 7
    assert "2026-04-30T02:30:00" in job.args  # before the due time, not before the start


def test_a_clock_that_was_set_back_starts_nothing_and_a_missed_run_is_made_up_for_once(tmp_path: Path) -> None:
    runs, moment = _Runs(), [datetime(2026, 5, 1, 2, 30, tzinfo=UTC)]
    schedule = _schedule(tmp_path, runs, moment)
    assert schedule.start_due() == ["job"]
    for later in (timedelta(minutes=1), timedelta(hours=-1), timedelta(days=-1), timedelta(hours=20)):
        moment[0] = datetime(2026, 5, 1, 2, 30, tzinfo=UTC) + later
        assert schedule.start_due() == []
    moment[0] = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)  # three days without a node
    assert schedule.start_due() == ["job"]
    assert schedule.start_due() == []
    assert len(runs.kept) == 2


def test_a_missed_run_may_be_skipped_and_a_new_rule_begins_with_its_next_time(tmp_path: Path) -> None:
    runs, moment = _Runs(), [datetime(2026, 5, 1, 12, 0, tzinfo=UTC)]
    assert _schedule(tmp_path, runs, moment).start_due() == []
    schedule = _schedule(tmp_path, runs, moment, "skip")
    moment[0] = datetime(2026, 5, 2, 2, 30, tzinfo=UTC)
    assert schedule.start_due() == ["job"]
    moment[0] = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)
    assert schedule.start_due() == []


@pytest.mark.parametrize(
    ("window", "hour", "opens"),
    [
        ("02:00-05:00", 3, None),
        ("02:00-05:00", 1, 2),
        ("02:00-05:00", 6, 26),
        ("22:00-04:00", 23, None),
        ("22:00-04:00", 3, None),
        ("22:00-04:00", 12, 22),
    ],
)
def test_a_window_opens_at_its_time_also_over_midnight(
    tmp_path: Path, window: str, hour: int, opens: int | None
) -> None:
    found = rule(tmp_path, MOVE + f'[schedule]\nat = "02:30"\nwindow = "{window}"\n')
    throttle = Throttle({}, lambda _: 0, lambda _: None, lambda _: None)  # type: ignore[arg-type,return-value]
    day = datetime(2026, 5, 1, tzinfo=UTC)
    wanted = None if opens is None else day + timedelta(hours=opens)
    assert throttle.opens(found, day + timedelta(hours=hour)) == wanted


# --- chunks over memory -----------------------------------------------------------------------------------------------


class _Sides:
    """Two templates in memory, and a move between them."""

    def __init__(self, tmp_path: Path, **run: Any) -> None:
        tables = TABLES.replace("args = {below", "#")
        self.hot = MemoryAdapter(template(tmp_path, "A", tables=tables.replace('optional = ["below"]', "")))
        self.cool = MemoryAdapter(template(tmp_path, "B", tables=tables.replace('optional = ["below"]', "")))
        self.move = Move(
            self.hot, self.cool, RecordMap.same(self.hot.template), "range", {}, Run(**run), keep_source=False
        )
        self.job = Job("u", "01a21ce2-d246-7816-ab55-dbd654714a6e", 0, "job", JobKind.MIGRATE, JobState.RUNNING, "{}")

    def fill(self, number: int) -> None:
        self.hot.load([{"id": key, "amount": key} for key in range(1, number + 1)], "fill")

    def chunk(self, until: int, *, repeated: bool = False, n: int = 1) -> Chunk:
        lane = Lane(0, n=n, until=f"[{until}]", folded=False)
        return Chunk(self.job, lane, lambda _: None, repeated=repeated)

    def records(self, side: MemoryAdapter) -> dict[int, Record]:
        return side._store.records  # type: ignore[attr-defined,no-any-return]


def test_a_chunk_that_is_repeated_counts_the_same(tmp_path: Path) -> None:
    sides = _Sides(tmp_path)
    sides.fill(10)
    first = sides.move.process(sides.chunk(10))
    assert first == Tally(read=10, moved=10, chunks=1)
    assert sides.move.process(sides.chunk(10, repeated=True)) == first
    assert not sides.records(sides.hot)
    assert len(sides.records(sides.cool)) == 10


def test_a_copy_of_a_chunk_at_work_removes_nothing_that_the_other_has_moved(tmp_path: Path) -> None:
    """The second copy begins after the first has loaded, and ends after the first has removed."""
    sides = _Sides(tmp_path)
    sides.fill(10)
    second = sides.chunk(10, repeated=True)
    load = sides.cool.load

    def loading(records: Any, step: str) -> None:
        load(records, step)
        sides.cool.load = load  # type: ignore[method-assign]
        assert sides.move.process(second).moved == 10

    sides.cool.load = loading  # type: ignore[method-assign]
    assert sides.move.process(sides.chunk(10)).moved == 10
    assert len(sides.records(sides.cool)) == 10
    assert not sides.records(sides.hot)


def test_what_others_change_and_delete_between_two_deliveries_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = _Sides(tmp_path)
    sides.fill(10)
    monkeypatch.setattr(sides.move._loader, "read_back", _raises)
    with pytest.raises(KeyboardInterrupt):
        sides.move.process(sides.chunk(10))
    monkeypatch.undo()
    sides.records(sides.hot)[3]["amount"] = -3
    del sides.records(sides.hot)[4]
    sides.hot.load([{"id": 11, "amount": 11}], "beyond the range")
    sides.records(sides.hot)[5] = {"id": 5, "amount": 5}
    tally = sides.move.process(sides.chunk(10, repeated=True))
    assert (tally.read, tally.moved, tally.changed, tally.deleted) == (9, 8, 1, 1)
    assert set(sides.records(sides.hot)) == {3, 11}
    assert set(sides.records(sides.cool)) == {1, 2, 5, 6, 7, 8, 9, 10}


def test_an_undone_chunk_leaves_its_records_in_the_source_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = _Sides(tmp_path)
    sides.fill(10)
    monkeypatch.setattr(sides.move._loader, "read_back", _raises)
    with pytest.raises(KeyboardInterrupt):
        sides.move.process(sides.chunk(10))
    assert len(sides.records(sides.cool)) == 10
    for _ in range(2):
        assert sides.move.undo(sides.chunk(10, repeated=True)).moved == 0
    assert len(sides.records(sides.hot)) == 10
    assert not sides.records(sides.cool)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    sides = _Sides(tmp_path)
    sides.fill(5)
    sides.cool.load([{"id": 2, "amount": 2}, {"id": 3, "amount": -3}], "others")
    chunk = sides.chunk(5)
    tally = sides.move.process(chunk)
    assert (tally.moved, tally.there, tally.rejected) == (4, 1, 1)
    assert [(reject.key, reject.code, reject.field) for reject in chunk.rejects] == [("3", "duplicate_key", "id")]
    assert sides.records(sides.cool)[3]["amount"] == -3
    assert set(sides.records(sides.hot)) == {3}


def _raises(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_a_record_that_leaves_the_range_after_its_load_is_not_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = _Sides(tmp_path)
    sides.fill(5)
    monkeypatch.setattr(sides.move._loader, "read_back", _raises)
    with pytest.raises(KeyboardInterrupt):
        sides.move.process(sides.chunk(5))
    monkeypatch.undo()
    read = sides.hot.read_range
    monkeypatch.setattr(sides.hot, "read_range", lambda *args: [row for row in read(*args) if row["id"] != 3])
    tally = sides.move.process(sides.chunk(5, repeated=True))
    assert (tally.read, tally.moved, tally.changed) == (4, 4, 1)
    assert set(sides.records(sides.hot)) == {3}
    assert set(sides.records(sides.cool)) == {1, 2, 4, 5}


def test_two_copies_at_work_take_each_others_copies_for_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second copy loads after the first, and before it has removed; then a record is changed and one deleted."""
    sides = _Sides(tmp_path)
    sides.fill(5)
    monkeypatch.setattr(sides.move._loader, "read_back", _raises)
    with pytest.raises(KeyboardInterrupt):
        sides.move.process(sides.chunk(5))
    monkeypatch.undo()
    second = sides.chunk(5)  # it does not know that another one has begun
    remove = sides.hot.remove_unchanged

    def removing(*args: Any) -> Any:
        sides.records(sides.hot)[2]["amount"] = -2
        del sides.records(sides.hot)[3]
        return remove(*args)

    monkeypatch.setattr(sides.hot, "remove_unchanged", removing)
    tally = sides.move.process(second)
    assert (tally.moved, tally.there, tally.changed, tally.deleted) == (3, 0, 1, 1)
    assert set(sides.records(sides.hot)) == {2}
    assert set(sides.records(sides.cool)) == {1, 4, 5}


def test_what_a_slow_copy_loads_after_the_chunk_was_taken_back_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = _Sides(tmp_path)
    sides.fill(3)
    load = sides.cool.load

    def loading(records: Any, step: str) -> None:
        sides.move.undo(sides.chunk(3, repeated=True))
        load(records, step)

    monkeypatch.setattr(sides.cool, "load", loading)
    assert sides.move.process(sides.chunk(3)).moved == 0
    assert len(sides.records(sides.hot)) == 3
    assert not sides.records(sides.cool)


def test_a_due_run_is_left_out_if_another_was_running_then(tmp_path: Path) -> None:
    runs, moment = _Runs(), [datetime(2026, 5, 1, 2, 30, tzinfo=UTC)]
    schedule = _schedule(tmp_path, runs, moment)
    assert schedule.start_due() == ["job"]
    (first,) = runs.kept.values()
    long = replace(first, made_at=first.due_at, ended_at=datetime(2026, 5, 2, 14, 0, tzinfo=UTC))
    runs.last_of = lambda _: long  # type: ignore[method-assign,assignment]
    moment[0] = datetime(2026, 5, 2, 14, 1, tzinfo=UTC)
    assert schedule.start_due() == []
