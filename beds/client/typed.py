"""What the classes share that `beds template models` writes: typed records and pages over a bound template.

A fetch returns what the DBA's object selects. A column that is no field of the template is kept in `model_extra`; a
field that the object does not select is absent, and reading it raises AttributeError.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Self, TypeVar, overload

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from beds.client.aio import AsyncBoundTemplate, AsyncClient
from beds.client.bound_template import BoundTemplate
from beds.client.client import Client, default_client
from beds.client.deadline import DEFAULT_TIMEOUT
from beds.domain.reply import Page
from beds.errors import SchemaMismatch

_LIMITS = frozenset(
    {
        "string_too_long", "bytes_too_long", "too_long", "greater_than_equal", "less_than_equal",
        "decimal_max_digits", "decimal_max_places", "decimal_whole_digits",
    }
)  # fmt: skip
"""Limits apply to what is written: a stored value may be older than the template's limit."""
_TOLERATED = _LIMITS | {"missing"}


DecimalValue = Annotated[Decimal, BeforeValidator(lambda value: Decimal(value) if type(value) is int else value)]
"""A decimal. A store may return one without a fraction as an integer."""


class RecordModel(BaseModel):
    """A record of a template."""

    model_config = ConfigDict(
        extra="allow", frozen=True, strict=True, arbitrary_types_allowed=True, protected_namespaces=()
    )

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """A record from what a fetch returned.

        Raises:
            SchemaMismatch: a value is null where the template says required, is none of the template's `values`, or
                has another type.
        """
        try:
            return cls.model_validate(row)
        except ValidationError as error:
            wrong = [each for each in error.errors(include_url=False) if each["type"] not in _TOLERATED]
            if not wrong:
                return cls._of_checked(row)
            field = str(wrong[0]["loc"][0]) if wrong[0]["loc"] else ""
            raise SchemaMismatch(
                f"a fetched record does not fit {cls.__name__}: the field {field}: {wrong[0]['msg']}",
                detail={"field": field, "problem": wrong[0]["type"]},
                hint="generate the models again if the template has changed; `untyped` has the fetches without types",
            ) from None

    @classmethod
    def _of_checked(cls, row: Mapping[str, Any]) -> Self:
        """A record with the fields of a row, some of which may be missing, or beyond a limit."""
        names = {spec.alias or name: name for name, spec in cls.model_fields.items()}
        known = {names[column]: value for column, value in row.items() if column in names}
        found: Self = cls.model_construct()  # type: ignore[assignment]  # pydantic's plugin does not know Self
        found.__dict__.update(known)
        found.__pydantic_fields_set__.update(known)
        object.__setattr__(
            found, "__pydantic_extra__", {column: value for column, value in row.items() if column not in names}
        )
        return found

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name in type(self).model_fields:
                raise AttributeError(f"the fetch did not return {name} of {type(self).__name__}")
            return super().__getattr__(name)


R = TypeVar("R", bound=RecordModel)


@dataclass(frozen=True, slots=True)
class RecordPage(Generic[R]):
    """A `Page` of typed records, which behaves as a sequence of them.

    Args:
        records: of this page.
        untyped: the page as it came; its records are mappings.
    """

    records: tuple[R, ...]
    untyped: Page

    @classmethod
    def of(cls, model: type[R], page: Page) -> Self:
        return cls(tuple(map(model.of_row, page.records)), page)

    @property
    def cursor(self) -> str:
        """Of the next page; empty at the end."""
        return self.untyped.cursor

    @property
    def complete(self) -> bool:
        """True if these are the last records: no page follows, and the limit has cut none off."""
        return self.untyped.complete

    def __iter__(self) -> Iterator[R]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[R, ...]: ...
    def __getitem__(self, index: int | slice) -> R | tuple[R, ...]:
        return self.records[index]


class TypedTemplate(Generic[R]):
    """One template's operations as typed methods, which a generated class adds.

    Args:
        client: executes them; the default client when absent.
    """

    template_name: ClassVar[str]
    record_model: type[R]

    def __init__(self, client: Client | None = None) -> None:
        self.untyped: BoundTemplate = (client or default_client()).template(self.template_name)

    def _fetch(
        self,
        using: str,
        args: Mapping[str, Any],
        *,
        limit: int | None = None,
        cursor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> RecordPage[R]:
        page = self._fetch_page(using, args, limit=limit, cursor=cursor, timeout=timeout)
        return RecordPage.of(self.record_model, page)

    def _fetch_page(
        self,
        using: str,
        args: Mapping[str, Any],
        *,
        limit: int | None = None,
        cursor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Page:
        return self.untyped.fetch_records(using, given(args), limit=limit, cursor=cursor, timeout=timeout)

    def _iterate(self, using: str, args: Mapping[str, Any], *, limit: int | None = None) -> Iterator[R]:
        return map(self.record_model.of_row, self.untyped.fetch_all(using, given(args), limit=limit))


class AsyncTypedTemplate(Generic[R]):
    """A `TypedTemplate` with awaitable methods.

    Args:
        client: executes them; one over the default client when absent.
    """

    template_name: ClassVar[str]
    record_model: type[R]

    def __init__(self, client: AsyncClient | None = None) -> None:
        self.untyped: AsyncBoundTemplate = (client or AsyncClient()).template(self.template_name)

    async def _fetch(
        self,
        using: str,
        args: Mapping[str, Any],
        *,
        limit: int | None = None,
        cursor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> RecordPage[R]:
        page = await self._fetch_page(using, args, limit=limit, cursor=cursor, timeout=timeout)
        return RecordPage.of(self.record_model, page)

    async def _fetch_page(
        self,
        using: str,
        args: Mapping[str, Any],
        *,
        limit: int | None = None,
        cursor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Page:
        return await self.untyped.fetch_records(using, given(args), limit=limit, cursor=cursor, timeout=timeout)

    async def _iterate(self, using: str, args: Mapping[str, Any], *, limit: int | None = None) -> AsyncIterator[R]:
        async for row in self.untyped.fetch_all(using, given(args), limit=limit):
            yield self.record_model.of_row(row)


def given(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a caller gave: None stands for one that is left out."""
    return {name: value for name, value in args.items() if value is not None}
