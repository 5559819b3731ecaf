"""Rules: the TOML files in `schema/jobs/`, each of which describes a job. Its name is the file's."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from beds.domain.job import JobKind
from beds.errors import BedsError, MissingField, RuleError, UnknownField, UnknownRule, WrongType, nearest
from beds.templates.fields import FieldSpec
from beds.templates.template import MAX_LIMIT, FetchSpec, Name, Template

MAX_LANES = 64
MAX_PARTS = 10_000
_PARTITION = re.compile(r"(?:(year|month|day)\((\w+)\)|(\w+))")
Time = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
Window = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class _Header(_Table):
    kind: JobKind
    source: Name = Field(alias="from")
    """The template to read."""
    read: Name
    """Its fetch: one with `range = true`, or the aggregation."""
    to: Name | None = None
    """The template to load."""
    cold: Name | None = None
    """The `[cold.<name>]` of beds.toml to write files to, instead of `to`."""
    partition: tuple[str, ...] = ()
    """Folders of the files: fields, or `year(field)`, `month(field)`, `day(field)`."""
    drop: tuple[Name, ...] = ()
    """Fields of the source that the target does not get."""
    keep_source: bool = False
    """Whether the records also stay in the source."""
    description: str = ""


class Run(_Table):
    parallel: Annotated[int, Field(ge=1, le=MAX_LANES)] = 1
    """Lanes: chunks at work at once, over all nodes."""
    records: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 1000
    """Records of a chunk, at most."""
    seconds: Annotated[float, Field(gt=0, le=60)] = 0.2
    """What one call of a store shall take; chunks grow and shrink to it."""
    nice: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Rest after a chunk, as a share of its work."""
    verify: Literal["all", "count"] | Annotated[float, Field(gt=0, le=1)] = "all"
    """Which copies are read back and compared: all, none beyond their count, or a share."""
    max_rejects: Annotated[int, Field(ge=0)] = 100
    """The job stalls when the target refuses more records."""


class Schedule(_Table):
    at: Time
    """When a run is due, each day, in UTC."""
    window: Window | None = None
    """When its chunks may run, in UTC; outside of it they wait."""
    missed: Literal["once", "skip"] = "once"
    """`once`: a run that no node could start in time is made up for."""
    overlap: Literal["skip"] = "skip"
    """A run that is due while the one before goes on is left out."""

    @field_validator("window")
    @classmethod
    def _opens(cls, window: str | None) -> str | None:
        if window and window[:5] == window[6:]:
            raise ValueError("the window never opens: its ends are equal")
        return window


class Keep(_Table):
    days: Annotated[int, Field(ge=1)]
    """Files are deleted after this time."""


class Ago(_Table):
    """An argument that is a time, some time before the job's start."""

    ago_days: Annotated[float, Field(ge=0, strict=True)] = 0.0
    ago_hours: Annotated[float, Field(ge=0, strict=True)] = 0.0

    def before(self, moment: datetime) -> datetime:
        return moment - timedelta(days=self.ago_days, hours=self.ago_hours)


class Span(_Table):
    """Whole numbers, both ends included."""

    first: int = Field(alias="from")
    last: int = Field(alias="to")

    @model_validator(mode="after")
    def _is_forward(self) -> Span:
        if not 0 <= self.last - self.first < MAX_PARTS:
            raise ValueError(f"from … to takes 1 to {MAX_PARTS} numbers")
        return self


class Merge(_Table):
    """How the records of an aggregation's parts become one."""

    by: tuple[Name, ...]
    sum: tuple[Name, ...] = ()
    min: tuple[Name, ...] = ()
    max: tuple[Name, ...] = ()


class JobRule(_Table):
    """A job's description. `check` compares it with its templates."""

    job: _Header
    map: dict[Name, Name] = {}
    """The source's field for a field of the target; the same name where absent."""
    default: dict[Name, Any] = {}
    """Values of fields of the target that the source lacks."""
    args: dict[Name, Any] = {}
    """The range's arguments; a caller's come first. `{ago_days = 180}` is a time before the job's start."""
    parts: dict[Name, Span | list[Any]] = {}
    """An aggregation's argument with the values for which its object is called, one a chunk."""
    merge: Merge | None = None
    run: Run = Run()
    schedule: Schedule | None = None
    keep: Keep | None = None
    file: Path = Field(default=Path(), exclude=True)

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def kind(self) -> JobKind:
        return self.job.kind

    @field_validator("args")
    @classmethod
    def _times_ago(cls, args: dict[str, Any]) -> dict[str, Any]:
        return {name: Ago.model_validate(value) if _is_ago(value) else value for name, value in args.items()}

    @model_validator(mode="after")
    def _is_consistent(self) -> JobRule:
        job = self.job
        if job.kind is JobKind.AGGREGATE:
            for key in ("to", "cold", "partition", "drop"):
                if getattr(job, key):
                    raise ValueError(f"job.{key}: an aggregation writes to no template")
            if self.map or self.default:
                raise ValueError("map: an aggregation maps no fields")
            if len(self.parts) > 1:
                raise ValueError("parts takes one argument with its values")
            return self
        if self.parts or self.merge:
            raise ValueError("parts and merge are for aggregations")
        if job.kind is JobKind.MIGRATE and (not job.to or job.cold):
            raise ValueError("job.to: a migration names the template to load")
        if job.kind is JobKind.WAREHOUSE and bool(job.to) == bool(job.cold):
            raise ValueError("job.to or job.cold: a warehouse rule names one of them")
        if not job.cold and (job.partition or self.keep):
            raise ValueError("job.partition and keep are for files: name [job] cold")
        if job.cold and (self.map or self.default or job.drop):
            raise ValueError("map, default and job.drop: files keep the records as they are")
        for part in job.partition:
            if not _PARTITION.fullmatch(part):
                raise ValueError(f"job.partition: {part!r} is no field, and no year(field), month(field) or day(field)")
        return self

    @cached_property
    def part_values(self) -> list[Any]:
        """The values of the one argument in `parts`."""
        (values,) = self.parts.values() if self.parts else ([None],)
        return list(range(values.first, values.last + 1)) if isinstance(values, Span) else list(values)

    @property
    def part_name(self) -> str:
        return next(iter(self.parts), "")

    def source_field(self, target: str) -> str:
        """The source's field for a field of the target."""
        return self.map.get(target, target)

    def reads(self, source: Template) -> FetchSpec:
        """The fetch that the rule reads. Raises RuleError."""
        spec = source.fetch.get(self.job.read)
        if spec is None:
            raise self.wrong("job.read", f"template {source.name} has no fetch {self.job.read!r}"
                             f"{nearest(self.job.read, source.fetch)}")  # fmt: skip
        return spec

    def arguments(self, source: Template, given: Mapping[str, Any], moment: datetime | None = None) -> dict[str, Any]:
        """The range's arguments: the caller's, else the rule's.

        Args:
            source: the template to read.
            given: the caller's.
            moment: the job's start, for arguments such as `{ago_days = 180}`; these stay out when absent.

        Raises:
            UnknownField, MissingField, WrongType: names the argument.
        """
        spec = self.reads(source)
        known = spec.args
        for name in given:
            if name not in known or name in self.parts:
                takes = [each for each in known if each not in self.parts]
                raise UnknownField(
                    f"job {self.name} has no argument {name!r}{nearest(name, takes)}",
                    detail={"field": name, "job": self.name, "known": takes},
                    hint=f"its arguments: {', '.join(takes) or '(none)'}",
                )
        found: dict[str, Any] = {}
        for name, field in known.items():
            if name in self.parts:
                continue
            if name in given:
                found[name] = field.check(name, given[name])
            elif name in self.args:
                value = self.args[name]
                if isinstance(value, Ago):
                    if moment is None:
                        continue
                    value = value.before(moment)
                found[name] = field.check(name, value)
            elif field.required and name not in spec.optional:
                raise MissingField(
                    f"job {self.name} needs the argument {name}",
                    detail={"field": name, "job": self.name},
                    hint=f"give it, or set [args] {name} in {self.file.name}",
                )
        return found

    def wrong(self, key: str, problem: str) -> RuleError:
        return RuleError(
            f"{self.file}: {key}: {problem}", detail={"file": str(self.file), "key": key},
            hint="mend the file; `beds job list` checks it again",
        )  # fmt: skip

    def check(self, templates: Mapping[str, Template]) -> None:
        """Compare the rule with its templates. Raises RuleError: names the file, the key and what is wrong."""
        source = self._template(templates, "from", self.job.source)
        spec = self.reads(source)
        for name in (*self.args, *self.parts):
            if name not in spec.args:
                raise self.wrong(f"args.{name}", f"fetch {self.job.read} of {source.name} has no argument of that name")
        try:
            self.arguments(source, {}, datetime.now(UTC))
            for value in self.part_values if self.parts else ():
                spec.args[self.part_name].check(self.part_name, value)
        except MissingField as missing:
            if self.schedule:
                raise self.wrong("args", f"{missing.message}: nobody gives it to a scheduled run") from None
        except BedsError as error:
            raise self.wrong("args", error.message) from None
        if self.job.kind is JobKind.AGGREGATE:
            return
        self._check_range(source, spec)
        if self.job.to:
            self._check_map(source, self._template(templates, "to", self.job.to))
        for part in self.job.partition:
            self._check_partition(source, part)

    def _template(self, templates: Mapping[str, Template], key: str, name: str) -> Template:
        if name not in templates:
            raise self.wrong(f"job.{key}", f"no template {name!r}{nearest(name, list(templates))}")
        found = templates[name]
        if found.system:
            raise self.wrong(f"job.{key}", f"template {name} belongs to BEDS itself")
        return found

    def _check_range(self, source: Template, spec: FetchSpec) -> None:
        if not spec.range:
            raise self.wrong(
                "job.read", f"fetch {self.job.read} of {source.name} has no range = true: a job reads ranges"
            )
        if why := source.uncertain_cursor(spec):
            raise self.wrong("job.read", why)
        if self.run.records > spec.max_limit:
            raise self.wrong(
                "run.records", f"{self.run.records} is above max_limit = {spec.max_limit} of fetch {self.job.read}"
            )
        needed = [] if self.job.keep_source else ["by_keys", "remove_many"]
        for table in needed:
            if table not in source.refs():
                raise self.wrong("job.from", f"template {source.name} has no [{table}], which a job needs")

    def _check_map(self, source: Template, target: Template) -> None:
        for table in ("load", "by_keys", "remove_many"):
            if table not in target.refs():
                raise self.wrong("job.to", f"template {target.name} has no [{table}], which a job needs")
        for name, of in self.map.items():
            if name not in target.fields:
                raise self.wrong(f"map.{name}", f"{target.name} has no such field{nearest(name, target.fields)}")
            if of not in source.fields:
                raise self.wrong(f"map.{name}", f"{source.name} has no field {of!r}{nearest(of, source.fields)}")
        for name, value in self.default.items():
            if name not in target.fields:
                raise self.wrong(f"default.{name}", f"{target.name} has no such field{nearest(name, target.fields)}")
            try:
                target.fields[name].check(name, value)
            except BedsError as error:
                raise self.wrong(f"default.{name}", error.message) from None
        taken = {self.source_field(name) for name in target.fields if name not in self.default}
        for name in source.fields:
            if name not in taken and name not in self.job.drop:
                raise self.wrong("map", f"field {name} of {source.name} goes nowhere: map it, or list it in [job] drop")
        for name in self.job.drop:
            if name not in source.fields:
                raise self.wrong("job.drop", f"{source.name} has no field {name!r}{nearest(name, source.fields)}")
        for name, field in target.fields.items():
            of = self.source_field(name)
            if name in self.default:
                continue
            if of not in source.fields:
                if field.required:
                    raise self.wrong(
                        f"map.{name}", f"the field is required, and {source.name} has no {of}: map or default it"
                    )
                continue
            self._check_types(name, field, of, source.fields[of])
        for name in target.keys:
            if name in self.default:
                raise self.wrong(f"default.{name}", "all records would have one key")
        keys = {self.source_field(name) for name in target.keys}
        if keys != set(source.keys):
            raise self.wrong(
                "map", f"the key of {target.name} comes from {', '.join(sorted(keys))}, that of {source.name} is "
                f"{source.key_name}: both sides need the same key"
            )  # fmt: skip

    def _check_types(self, name: str, field: FieldSpec, of: str, source: FieldSpec) -> None:
        wider = {("integer", "number"), ("integer", "decimal")}
        if field.type != source.type and (source.type, field.type) not in wider:
            raise self.wrong(f"map.{name}", f"is {field.type}, and {of} is {source.type}")

    def _check_partition(self, source: Template, part: str) -> None:
        found = _PARTITION.fullmatch(part)
        assert found is not None
        name = found[2] or found[3]
        if name not in source.fields:
            raise self.wrong("job.partition", f"{source.name} has no field {name!r}{nearest(name, source.fields)}")
        if source.fields[name].type in ("object", "array", "bytes"):
            raise self.wrong("job.partition", f"{name} is a {source.fields[name].type}, which makes no folder's name")
        if found[1] and source.fields[name].type not in ("datetime", "date"):
            raise self.wrong("job.partition", f"{part}: the field is a {source.fields[name].type}, no time")
        if source.fields[name].sensitive:
            raise self.wrong("job.partition", f"{name} is sensitive, and folders have names")


class JobRules(Mapping[str, JobRule]):
    """All rules of a node, by name."""

    def __init__(self, rules: Mapping[str, JobRule] | None = None) -> None:
        self._rules = dict(rules or {})
        self.broken: dict[str, BedsError] = {}
        """The errors of files that are no valid rules, by the names that these would have."""

    def __getitem__(self, name: str) -> JobRule:
        try:
            return self._rules[name]
        except (KeyError, TypeError):
            if isinstance(name, str) and name in self.broken:
                raise self.broken[name] from None
            raise UnknownRule(
                f"no job {str(name)[:64]!r}{nearest(str(name)[:64], self._rules)}",
                detail={"job": str(name)[:64], "known": sorted(self._rules)},
                hint="`beds job list` shows the rules; each is a file in schema/jobs/",
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __contains__(self, name: object) -> bool:
        return name in self._rules


def load_rule(file: Path) -> JobRule:
    """Read one rule file. Raises RuleError: names the file and the key."""
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        return rule_from(data, file)
    except ValidationError as failed:
        problems = [
            ": ".join(filter(None, (".".join(str(part) for part in p["loc"]), _said(p))))
            for p in failed.errors(include_url=False, include_input=False)
        ]
        raise RuleError(
            f"{file}: " + "; ".join(problems),
            detail={"file": str(file), "problems": problems},
            hint="mend the file; `beds job list` checks it again",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RuleError(f"{file} cannot be read: {error}", detail={"file": str(file)}, hint="mend the file") from None


def rule_from(data: Mapping[str, Any], file: Path) -> JobRule:
    return JobRule.model_validate({**data, "file": file})


def check_arguments(given: Any) -> dict[str, Any]:
    """A job's arguments by name. Raises WrongType."""
    if not isinstance(given, Mapping):
        raise WrongType(f"args takes an object, not {type(given).__name__}", detail={"field": "args"})
    return dict(given)


def _is_ago(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(str(key).startswith("ago") for key in value)


def _said(problem: Mapping[str, Any]) -> str:
    """One problem in words."""
    if problem["type"] == "extra_forbidden":
        return "unknown key" + nearest(str(problem["loc"][-1]), _keys())
    return str(problem["msg"]).removeprefix("Value error, ")


def _keys() -> set[str]:
    models: tuple[type[BaseModel], ...] = (JobRule, _Header, Run, Schedule, Keep, Ago, Span, Merge)
    return {field.alias or name for model in models for name, field in model.model_fields.items()}
