"""One request: its address, its preferences, its body, and the response's headers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from beds.config.http import Http
from beds.http.access import Caller
from beds.http.problems import Problem
from beds.http.values import encode, read_json

JSON, NDJSON, CSV = "application/json", "application/x-ndjson", "text/csv"
EVENT_ID = "Beds-Event-Id"
_PREFERENCE = re.compile(r'\s*([A-Za-z-]+)\s*(?:=\s*"?([^",;]*)"?)?\s*')
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MAX_PARAMETERS = 1000
MAX_WAIT_SECONDS = 60.0
"""The longest `Prefer: wait`."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """The header `Prefer` (RFC 7240).

    Args:
        respond_async: whether the caller takes a ticket.
        wait: seconds that it waits for a result nevertheless; None if it does not say.
        minimal: whether a write's response needs no body.
    """

    respond_async: bool = False
    wait: float | None = None
    minimal: bool = False

    @classmethod
    def read(cls, header: str) -> Preferences:
        given: dict[str, str] = {}
        for part in header.split(","):
            if found := _PREFERENCE.fullmatch(part.partition(";")[0]):
                given.setdefault(found[1].lower(), found[2] or "")
        wait = given.get("wait", "")
        seconds = min(float(wait), MAX_WAIT_SECONDS) if wait.isdecimal() else None
        return cls("respond-async" in given, seconds, given.get("return") == "minimal")

    @property
    def applied(self) -> dict[str, str]:
        """The header that says which preference was honored, for a ticket."""
        wait = f", wait={self.wait:.0f}" if self.wait is not None else ""
        return {"Preference-Applied": f"respond-async{wait}"}


@dataclass
class Asked:
    """A request of a known caller.

    Args:
        request: as it came.
        caller: who sent it.
        http: `[http]` of beds.toml.
        segments: of the address behind `/v1`, decoded.
    """

    request: Request
    caller: Caller
    http: Http
    segments: tuple[str, ...]
    verify: Callable[[], Awaitable[object]]
    """Called while a stream goes on; raises Problem if the caller is let in no more."""
    headers: dict[str, str] = field(default_factory=dict)
    """Further headers of the response."""

    @property
    def method(self) -> str:
        return "GET" if self.request.method == "HEAD" else self.request.method

    @property
    def root(self) -> str:
        """The prefix under which the application is mounted; empty at the top."""
        return str(self.request.scope.get("root_path", "")).rstrip("/")

    @cached_property
    def preferences(self) -> Preferences:
        given = self.request.headers.getlist("prefer")
        return Preferences.read(",".join(given)) if given else Preferences()

    @property
    def idempotency_key(self) -> str | None:
        key = self.request.headers.get("idempotency-key")
        if key is not None and not (0 < len(key) <= 200 and key.isprintable()):
            raise Problem(422, "out_of_range", "Idempotency-Key takes 1 to 200 printable characters.",
                          field="Idempotency-Key")  # fmt: skip
        return key

    @cached_property
    def query(self) -> dict[str, str]:
        """The parameters of the address. Raises Problem: one stands twice."""
        found: dict[str, str] = {}
        text = self.request.scope["query_string"].decode("latin-1")
        try:
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
        except ValueError:
            raise Problem(
                400, "unreadable", f"The query has more than {MAX_PARAMETERS} parameters, or is no UTF-8."
            ) from None
        for name, value in pairs:
            if name in found:
                raise Problem(400, "unreadable", f"The parameter {name[:40]} stands twice.", field=name[:40])
            found[name] = value
        return found

    @property
    def media_type(self) -> str:
        return self.request.headers.get("content-type", JSON).partition(";")[0].strip().lower()

    def allow(self, *methods: str) -> None:
        """Raises Problem (405): the request has another method."""
        if self.method not in methods:
            raise Problem(405, "method_not_allowed", f"This address takes {', '.join(methods)}.",
                          headers={"Allow": ", ".join(methods)})  # fmt: skip

    def accepts(self, *kinds: str) -> str:
        """The first of the media types that the caller accepts. Raises Problem (406)."""
        accept = self.request.headers.get("accept", "*/*")
        if accept in ("*/*", kinds[0]):
            return kinds[0]
        wanted: list[tuple[float, str]] = []
        for part in accept.split(","):
            kind, *parameters = (piece.strip() for piece in part.split(";"))
            quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            try:
                wanted.append((-float(quality), kind.lower()))
            except ValueError:
                continue
        for rank, kind in sorted(wanted, key=lambda each: each[0]):
            for known in kinds:
                if rank < 0 and kind in (known, "*/*", known.partition("/")[0] + "/*"):
                    return known
        raise Problem(406, "not_acceptable", f"This address has {', '.join(kinds)}.")

    async def body(self) -> bytes:
        """The whole body. Raises Problem (400, 408, 413)."""
        return await read_body(self.request, self.http.max_body_bytes, self.http.body_timeout)

    async def json(self, empty: Any = None) -> Any:
        """The body as JSON; `empty` for an absent one, if it is given. Raises Problem (400, 415)."""
        if self.media_type not in (JSON, "application/merge-patch+json"):
            raise Problem(415, "unsupported_media_type", f"Send {JSON}.", headers={"Accept": JSON})
        body = await self.body()
        return empty if empty is not None and not body else read_json(body)

    def reply(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """A response with a JSON body."""
        given = {**self.headers, **(headers or {})}
        return Response(encode(value), status, given, media_type=JSON)

    def reply_empty(self, status: int, headers: Mapping[str, str] | None = None) -> Response:
        return Response(None, status, {**self.headers, **(headers or {})})


def segments_of(path: bytes) -> tuple[str, ...]:
    """The decoded segments of a raw path, so that an encoded slash stays inside its segment.

    Raises:
        Problem (400): a segment is not UTF-8, or holds a control character.
    """
    try:
        found = tuple((unquote_to_bytes(part) if b"%" in part else part).decode() for part in path.split(b"/"))
    except UnicodeDecodeError:
        raise Problem(400, "unreadable", "The address is not UTF-8.") from None
    if any(map(_CONTROL.search, found)):
        raise Problem(400, "unreadable", "The address holds a control character.")
    return found


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The whole body of a request.

    Args:
        request: as it came.
        limit: bytes that it may have.
        seconds: in which it must arrive.

    Raises:
        Problem: it is larger (413), too slow (408), or broke off (400).
    """
    close = {"Connection": "close"}
    too_large = Problem(413, "body_too_large", f"The body may have {limit:,} bytes.", headers=close)
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Problem(408, "request_timeout", "The body did not arrive in time.", headers=close) from None
    except ClientDisconnect:
        raise Problem(400, "unreadable", "The body broke off.") from None
    return b"".join(parts)
