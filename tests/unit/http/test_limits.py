"""Rates, concurrency, sizes and numbers: what is too much is refused with the reason, and quickly."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from beds.config.http import HttpRole
from beds.errors import WrongType
from beds.http.access import Caller
from beds.http.limits import Limits
from beds.http.problems import Problem
from beds.templates.text import value_of
from tests.unit.http.conftest import ALL, NARROW, ROLES, application, as_caller, key

NOTICE = {"airport": "JFK", "title": "Snow", "status": "open"}
OPERATIONS = "/v1/Airlines:all"
MEGABYTE = 1 << 20
BULK_SECONDS = 10.0
"""Of processor time: far above what refusing a body takes, and below what reading one of 8 MiB value by value took."""


def limited(**limits: Any) -> TestClient:
    roles = {**ROLES, "few": {"allow": ["*"], **limits}}
    return TestClient(application(roles=roles, key=[key("few", "few", "few"), key("all", ALL, "everything")]))


def test_a_caller_that_sends_too_many_waits_and_others_do_not() -> None:
    with limited(rate=0.001, burst=3) as web:
        few = as_caller("few")
        found = [web.get(OPERATIONS, headers=few) for _ in range(5)]
        assert [each.status_code for each in found] == [200, 200, 200, 429, 429]
        assert found[0].headers["ratelimit"] == '"caller";r=2'
        refused = found[-1]
        assert int(refused.headers["retry-after"]) > 1
        assert refused.headers["ratelimit"].startswith('"caller";r=0;t=')
        assert refused.headers["ratelimit-policy"].startswith('"caller";q=3;w=')
        assert (refused.json()["code"], refused.json()["retryable"]) == ("too_many_requests", True)
        for path in ("/openapi.json", "/v1/none", "/v1/tickets/x"):
            assert web.get(path, headers=few).status_code == 429, "no address costs nothing"
        assert web.get(OPERATIONS, headers=as_caller(ALL)).status_code == 200


def test_a_websocket_that_sends_too_many_is_slowed_instead() -> None:
    with limited(rate=5, burst=1) as web, web.websocket_connect("/v1/ws", headers=as_caller("few")) as socket:
        started = time.monotonic()
        for number in range(4):
            socket.send_json({"id": number, "template": "Airlines", "operation": "all"})
        found = [socket.receive_json() for _ in range(4)]
        assert [(each["id"], each["status"]) for each in found] == [(number, 200) for number in range(4)]
        assert time.monotonic() - started > 0.5, "three tokens at five a second"


def test_each_call_of_a_batch_counts() -> None:
    with limited(rate=0.001, burst=10) as web:
        few = as_caller("few")
        call = {"template": "Airlines", "operation": "all"}
        assert web.post("/v1:batch", json=[call] * 8, headers=few).status_code == 200
        refused = web.post("/v1:batch", json=[call] * 8, headers=few)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")


def caller(name: str = "a", **limits: Any) -> Caller:
    return Caller(name, {"r": HttpRole(**limits)})


def test_concurrency_and_the_whole_node_have_room_for_so_many() -> None:
    limits = Limits(3)
    one, other = caller("one", concurrency=2), caller("other")
    with limits.admitted(one), limits.admitted(one):
        with pytest.raises(Problem) as refused, limits.admitted(one):
            pass
        assert (refused.value.status, "Retry-After" in refused.value.headers) == (429, True)
        with limits.admitted(other):
            with pytest.raises(Problem) as full, limits.admitted(caller("third")):
                pass
            assert (full.value.status, full.value.code, full.value.headers["Retry-After"]) == (503, "overloaded", "1")
    assert limits.in_flight == 0
    with limits.admitted(one):
        assert limits.in_flight == 1


def test_callers_at_work_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beds.http.limits.CALLERS", 5)
    limits = Limits(1000)
    busy = caller("busy", concurrency=1)
    with limits.admitted(busy):
        for number in range(50):
            with limits.admitted(caller(f"c{number}")):
                pass
        with pytest.raises(Problem), limits.admitted(busy):
            pass


# --- numbers and texts -----------------------------------------------------------------------------------------------


@pytest.fixture
def web() -> Any:
    with TestClient(application(), headers=as_caller(ALL)) as found:
        yield found


def test_numbers_that_python_does_not_read_are_no_fault(web: TestClient) -> None:
    for limit in ("9" * 5000, "9" * 50, "\u0663", "\u00b2", "-1", "0", "1e3", "1_0", " 1", ""):
        assert web.get(OPERATIONS, params={"limit": limit}).status_code == 422, limit[:20]
    for wait in ("\xb2", "9" * 400, "-1", "1e3", "nan", '"', "=", ";"):
        headers = {b"Prefer": f"wait={wait}".encode("latin-1"), b"Accept": b"*/*"}
        assert web.get(OPERATIONS, headers=headers).status_code == 200, wait
        headers[b"Prefer"] = f"respond-async, wait={wait}".encode("latin-1")
        assert web.post("/v1/Notices", json=NOTICE, headers=headers).status_code in (201, 202)


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1e99999999999999999999", "9" * 400, "9" * 5000, "NaN", "-Infinity"]
)
@pytest.mark.parametrize("field", ["severity", "title", "details", "tags"])
def test_no_number_is_too_large_for_an_answer(web: TestClient, number: str, field: str) -> None:
    value = {"details": f'{{"x": {number}}}', "tags": f"[{number}]"}.get(field, number)
    body = f'{{"airport": "JFK", "title": "t", "status": "open", "{field}": {value}}}'
    if field == "title":
        body = f'{{"airport": "JFK", "status": "open", "title": {value}}}'
    refused = web.post("/v1/Notices", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code in (400, 422), refused.text
    assert web.get("/v1/Notices:open_at?airport=JFK").json()["records"] == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("duration", "PT99999999999999S"),
        ("decimal", "1e99999999999999999999"),
        ("integer", "9" * 5000),
        ("date", "9" * 99),
    ],
)
def test_a_text_beyond_a_type_is_a_wrong_type(kind: str, text: str) -> None:
    with pytest.raises(WrongType):
        value_of("field", text, kind)


def test_what_a_job_takes_is_checked_before_it_starts(web: TestClient) -> None:
    """A dry run that is misspelled would be a run."""
    for body in (
        {"dry_run": "true"},
        {"dry_run": 1},
        {"restore": {"a": 1}},
        {"verify": 7},
        {"args": [1]},
        [1],
        7,
        {"x": 1},
    ):
        refused = web.post("/v1/jobs/delay_report", json=body)
        assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json"), body
    assert web.post("/v1/jobs/none", json={}).status_code == 404
    assert web.post("/v1/jobs/delay_report", json={}, headers=as_caller(NARROW)).status_code in (403, 404)


# --- sizes -----------------------------------------------------------------------------------------------------------

_ROOM = 8 * MEGABYTE - 1000
BULKS = {
    "numbers": ("application/json", b"[" + b"1," * (_ROOM // 2) + b"1]"),
    "objects": ("application/json", b"[" + b"{}," * (_ROOM // 3) + b"{}]"),
    "lists in a field": ("application/json", b'[{"tags":[' + b"[]," * (_ROOM // 3) + b"1]}]"),
    "names": ("application/json", b"[{" + b",".join(b'"%d":1' % n for n in range(300_000)) + b"}]"),
    "lines": ("application/x-ndjson", b"1\n" * (_ROOM // 2)),
    "empty lines": ("application/x-ndjson", b"\n" * _ROOM),
    "wide lines": ("application/x-ndjson", (b'{"tags":[' + b"1," * 2000 + b"1]}\n") * 1000),
    "rows": ("text/csv", b"title\n" + b"1\n" * (_ROOM // 2)),
}


@pytest.mark.parametrize("what", BULKS)
def test_a_body_of_millions_of_values_is_refused_and_holds_up_nobody(web: TestClient, what: str) -> None:
    kind, body = BULKS[what]
    started = time.process_time()  # of all threads; a busy machine changes it little
    refused = web.post("/v1/Notices:batch", content=body, headers={"Content-Type": kind})
    assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large"), refused.text
    assert time.process_time() - started < BULK_SECONDS


def test_bodies_that_are_too_large_or_of_another_form(web: TestClient) -> None:
    json_kind = {"Content-Type": "application/json"}
    assert web.post("/v1/Notices", content=b"x" * (9 * MEGABYTE), headers=json_kind).status_code == 413
    chunks = (b"x" * MEGABYTE for _ in range(9))
    assert web.post("/v1/Notices", content=chunks, headers=json_kind).status_code == 413
    for body in (
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"{}{}",
        b'{"a":1,}',
        b"\xef\xbb\xbf{}",
        b'"\\ud800"',
    ):
        assert web.post("/v1/Notices", content=body, headers=json_kind).status_code == 400, body[:20]
    deep = {**NOTICE, "details": json.loads('{"a":' * 100 + "1" + "}" * 100)}
    assert web.post("/v1/Notices", json=deep).status_code == 422
    gzip = {**json_kind, "Content-Encoding": "gzip"}
    assert web.post("/v1/Notices", content=b"\x1f\x8b\x08\x00" + b"x" * 100, headers=gzip).status_code == 400
    twice = b'{"airport":"JFK","title":"one","title":"two","status":"open"}'
    made = web.post("/v1/Notices", content=twice, headers=json_kind)
    assert web.get(made.headers["location"]).json()["title"] == "two", "the last of several equal names counts"


@pytest.mark.parametrize("accept", [";;;,,,q=1", "a" * 5000, "*/*;q=nan", "*/*;q=0", "\xff\xfe", "*/*;q=x", "," * 5000])
def test_an_accept_header_without_sense_is_not_acceptable(web: TestClient, accept: str) -> None:
    refused = web.get(OPERATIONS, headers={b"Accept": accept.encode("latin-1")})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
