"""Fetches, records and writes over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from beds.config.http import HttpRole
from beds.http.access import Caller
from beds.http.application import Application
from beds.http.limits import Limits
from beds.http.problems import Problem
from tests.unit.http.conftest import ALL, BOUND, NARROW, as_caller

NOTICE = {"airport": "JFK", "title": "Snow", "status": "open"}


def test_a_record_is_created_read_changed_and_deleted(web: TestClient) -> None:
    made = web.post("/v1/Airlines", json={"carrier": "ZZ", "name": "Zed"})
    assert (made.status_code, made.headers["location"]) == (201, "/v1/Airlines/ZZ")
    assert made.json() == {"record_id": "ZZ", "affected": 1, "record": {"carrier": "ZZ"}}
    assert made.headers["beds-event-id"].count(".") == 2
    assert web.get("/v1/Airlines/ZZ").json() == {"carrier": "ZZ", "name": "Zed"}
    assert web.patch("/v1/Airlines/ZZ", json={"name": "Zed Air"}).status_code == 200
    assert web.get("/v1/Airlines:by_carrier?carrier=ZZ").json() == {
        "records": [{"carrier": "ZZ", "name": "Zed Air"}], "cursor": None, "complete": True,
    }  # fmt: skip
    assert web.delete("/v1/Airlines/ZZ").status_code == 204
    gone = web.get("/v1/Airlines/ZZ")
    assert gone.status_code == 404
    assert gone.headers["content-type"] == "application/problem+json"
    assert gone.json()["code"] == "not_found"


def test_values_are_plain_json_in_both_directions(web: TestClient) -> None:
    given = {**NOTICE, "opened": "2013-07-01T12:00:00.5Z", "severity": 3, "tags": ["a", 1.5], "details": {"x": [1]}}
    made = web.post("/v1/Notices", json=given).json()
    found = web.get(f"/v1/Notices/{made['record_id']}").json()
    assert found["opened"] == "2013-07-01T12:00:00.500000+00:00"
    assert found["id"] == made["record_id"]
    assert (found["tags"], found["details"], found["severity"]) == (["a", 1.5], {"x": [1]}, 3)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**NOTICE, "severity": 9}, "severity"),
        ({**NOTICE, "severity": "3x"}, "severity"),
        ({**NOTICE, "severity": 1.5}, "severity"),
        ({**NOTICE, "opened": "2013-07-01T12:00:00"}, "opened"),
        ({**NOTICE, "opened": "2013-02-30T12:00:00Z"}, "opened"),
        ({**NOTICE, "id": "no-uuid"}, "id"),
        ({**NOTICE, "surplus": 1}, "surplus"),
        ({"airport": "JFK"}, "title"),
        ({**NOTICE, "title": ["list"]}, "title"),
        ({**NOTICE, "title": "\ud800"}, ""),
    ],
)
def test_bad_data_names_its_field_and_writes_nothing(web: TestClient, body: Any, field: str) -> None:
    refused = web.post("/v1/Notices", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert refused.status_code == (422 if field else 400), refused.text
    assert refused.json().get("field", "") == field
    assert web.get("/v1/Notices:open_at?airport=JFK&status=open").json().get("records", []) == []


def test_a_sent_key_makes_a_write_happen_once(web: TestClient) -> None:
    first = web.post("/v1/Notices", json=NOTICE, headers={"Idempotency-Key": "k"})
    again = web.post("/v1/Notices", json=NOTICE, headers={"Idempotency-Key": "k"})
    assert first.json() == again.json()
    assert first.headers["beds-event-id"] == again.headers["beds-event-id"]
    other = web.post("/v1/Notices", json={**NOTICE, "title": "Ice"}, headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


def test_pages_are_linked_and_streams_follow_them(web: TestClient) -> None:
    many = [{**NOTICE, "title": f"n{n}"} for n in range(25)]
    assert web.post("/v1/Notices:batch", json=many).json()["affected"] == 25
    titles, address = [], "/v1/Notices:open_at?airport=JFK&limit=10"
    while address:
        page = web.get(address)
        titles += [record["title"] for record in page.json()["records"]]
        address = page.links["next"]["url"] if "next" in page.links else ""
    assert sorted(titles) == sorted(each["title"] for each in many)
    lines = web.get("/v1/Notices:open_at?airport=JFK&limit=10", headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line)["title"] for line in lines.text.splitlines()] == titles
    table = web.get("/v1/Notices:open_at?airport=JFK&limit=10", headers={"Accept": "text/csv"})
    assert len(table.text.splitlines()) == 26


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", json.dumps([NOTICE, NOTICE])),
        ("application/x-ndjson", f"{json.dumps(NOTICE)}\n\n{json.dumps(NOTICE)}\n"),
        ("text/csv", 'airport,title,status\r\nJFK,Snow,open\r\nJFK,"a ""b""",closed\r\n'),
    ],
)
def test_many_records_come_as_json_lines_or_a_table(web: TestClient, kind: str, body: str) -> None:
    done = web.post("/v1/Notices:batch", content=body, headers={"Content-Type": kind})
    assert (done.status_code, done.json()["affected"]) == (200, 2)


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", "{}", 400),
        ("application/json", "[", 400),
        ("application/x-ndjson", f"{json.dumps(NOTICE)}\nnone\n", 400),
        ("application/x-ndjson", f"{json.dumps(NOTICE)}\n{json.dumps({**NOTICE, 'severity': 'x'})}\n", 422),
        ("text/csv", "airport,title,status\r\nJFK,Snow\r\n", 400),
        ("text/csv", "airport,title,status,severity\r\nJFK,Snow,open,x\r\n", 422),
        ("text/csv", b"\xff\xfe", 400),
        ("text/xml", "<a/>", 415),
    ],
)
def test_one_bad_record_refuses_all(web: TestClient, kind: str, body: Any, status: int) -> None:
    refused = web.post("/v1/Notices:batch", content=body, headers={"Content-Type": kind})
    assert refused.status_code == status, refused.text
    assert web.get("/v1/Notices:open_at?airport=JFK").json()["records"] == []


def test_a_version_guards_a_record(web: TestClient) -> None:
    made = web.post("/v1/Notices", json=NOTICE)
    address = made.headers["location"]
    etag = web.get(address).headers["etag"]
    assert web.get(address, headers={"If-None-Match": f'"x", {etag}'}).status_code == 304
    assert web.patch(address, json={"status": "closed"}).status_code == 428
    changed = web.patch(address, json={"status": "closed"}, headers={"If-Match": etag})
    assert changed.status_code == 200
    assert web.get(address).headers["etag"] != etag
    for stale in (etag, '"none"', "none", '"1", "2"'):
        refused = web.patch(address, json={"status": "open"}, headers={"If-Match": stale})
        assert (refused.status_code, refused.json()["code"]) == (412, "precondition_failed")
    assert web.delete(address, headers={"If-Match": etag}).status_code == 412
    assert web.delete(address, headers={"If-Match": "*"}).status_code == 204


def test_any_request_becomes_a_ticket(web: TestClient) -> None:
    accepted = web.post("/v1/Notices", json=NOTICE, headers={"Prefer": "respond-async"})
    assert (accepted.status_code, accepted.headers["preference-applied"]) == (202, "respond-async")
    address = accepted.headers["location"]
    status = web.get(address, headers={"Prefer": "wait=5"}).json()
    assert (status["state"], status["ready"], status["error"]) == ("SUCCESS", True, None)
    assert web.get(f"{address}/result").json()["affected"] == 1
    at_once = web.post("/v1/Notices", json=NOTICE, headers={"Prefer": "respond-async, wait=5"})
    assert at_once.status_code == 201
    with web.stream("GET", f"{address}/events") as stream:
        assert "event: ended" in "".join(stream.iter_text())
    assert web.get("/v1/tickets/none").status_code == 404
    assert web.get(address, headers=as_caller(NARROW)).status_code == 404


def test_several_calls_in_one_request_fail_by_themselves(web: TestClient) -> None:
    done = web.post(
        "/v1:batch",
        json=[
            {"template": "Airlines", "operation": "create", "record": {"carrier": "ZZ", "name": "Zed"}},
            {"template": "Airlines", "operation": "create", "record": {"carrier": "ZZZ", "name": "Zed"}},
            {"template": "Airlines", "operation": "by_carrier", "args": {"carrier": "ZZ"}},
            {"template": "Nothing", "operation": "create", "record": {}},
            {"template": "Airlines", "operation": "delete", "key": "YY"},
            {"template": "Airlines", "operation": "delete", "key": "YY", "surplus": 1},
            7,
        ],
    )
    assert [each["status"] for each in done.json()] == [201, 422, 200, 404, 404, 422, 422]


def test_what_a_role_does_not_name_is_not_there_or_forbidden(web: TestClient) -> None:
    web.post("/v1/Airlines", json={"carrier": "ZZ", "name": "Zed"})
    narrow = as_caller(NARROW)
    assert web.get("/v1/Airlines:by_carrier?carrier=ZZ", headers=narrow).status_code == 200
    assert web.get("/v1/Airlines/ZZ", headers=narrow).status_code == 200
    assert web.get("/v1/Airlines:all", headers=narrow).status_code == 403
    assert web.post("/v1/Airlines", json={}, headers=narrow).status_code == 403
    assert web.patch("/v1/Airlines/ZZ", json={"name": "x"}, headers=narrow).status_code == 403
    assert web.get("/v1/Flights:count", headers=narrow).status_code == 404
    assert web.get("/v1/msTickets:by_state?state=PENDING", headers=narrow).status_code == 404
    assert web.get("/v1/msAudit:since", headers=as_caller("key-of-all")).status_code == 404
    assert web.get("/v1/lineage/x", headers=narrow).status_code == 403
    catalogue = web.get("/v1", headers=narrow).json()
    assert {t["name"]: t["operations"] for t in catalogue["templates"]} == {
        "Airlines": ["by_carrier"], "Notices": ["create"],
    }  # fmt: skip
    paths = web.get("/openapi.json", headers=narrow).json()["paths"]
    assert [path for path in paths if "Airlines" in path] == ["/v1/Airlines:by_carrier", "/v1/Airlines/{key}"]


def test_a_bound_value_cannot_be_chosen(web: TestClient) -> None:
    bound = as_caller(BOUND)
    assert web.post("/v1/Airlines", json={"name": "A"}, headers=bound).status_code == 201
    assert web.get("/v1/Airlines:by_carrier", headers=bound).json()["records"] == [{"carrier": "AA", "name": "A"}]
    web.post("/v1/Airlines", json={"carrier": "BB", "name": "B"})
    assert web.get("/v1/Airlines:by_carrier?carrier=BB", headers=bound).status_code == 403
    assert web.get("/v1/Airlines/BB", headers=bound).status_code == 403
    assert web.post("/v1/Airlines", json={"carrier": "CC", "name": "C"}, headers=bound).status_code == 403
    assert web.delete("/v1/Airlines/BB", headers=bound).status_code == 404
    assert web.patch("/v1/Airlines/BB", json={"name": "x"}, headers=bound).status_code in (403, 404)
    # A notice has no carrier: neither its creation nor its key can be limited to one.
    assert web.post("/v1/Notices", json=NOTICE, headers=bound).status_code == 422
    assert web.delete("/v1/Notices/0190d4c3-0000-7000-8000-000000000000", headers=bound).status_code == 403
    assert web.get("/v1/Airlines/BB").json()["name"] == "B"


def test_addresses_and_methods_that_do_not_exist(web: TestClient) -> None:
    assert web.get("/v1/Airlines:none").status_code == 404
    assert web.put("/v1/Airlines/ZZ", json={}).headers["allow"] == "GET, PATCH, DELETE"
    assert web.get("/v1/Airlines/a%00b").status_code == 400
    assert web.get("/v1/Airlines/a%2Fb").status_code == 404
    assert web.get("/v1/Airlines/%ff").status_code == 400
    assert web.get("/v1/Airlines").status_code == 400
    assert web.get("/v1/Airlines?using=by_carrier&carrier=ZZ").status_code == 200
    assert web.get("/v1/Airlines:by_carrier?carrier=a&carrier=b").status_code == 400
    assert web.get("/v1/Airlines:by_carrier?carrier=ZZ&other=1").status_code == 422
    assert web.get("/v1/Airlines:by_carrier?carrier=ZZ&limit=x").status_code == 422
    assert web.get("/v1/Airlines:by_carrier?carrier=ZZ", headers={"Accept": "image/png"}).status_code == 406
    assert web.get("/other").status_code == 404
    assert web.post("/v1/Airlines", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415


def test_nobody_gets_in_without_a_key(web: TestClient) -> None:
    for header in ("", "Bearer", "Bearer wrong", "Basic a:b", "Bearer a.b.c", "Bearer " + "x" * 20_000):
        refused = web.get("/v1", headers={"Authorization": header})
        assert refused.status_code == 401
        assert "bearer" in refused.headers["www-authenticate"].lower()


def test_a_batch_takes_a_key_for_each_call(web: TestClient) -> None:
    call = {"template": "Notices", "operation": "create", "record": NOTICE, "idempotency_key": "b1"}
    first, again = web.post("/v1:batch", json=[call, call]).json()
    assert (first["status"], again["status"]) == (201, 201), (first, again)
    assert first["body"]["record_id"] == again["body"]["record_id"]
    refused = web.post("/v1:batch", json=[call], headers={"Idempotency-Key": "b1"})
    assert (refused.status_code, refused.json()["field"]) == (422, "Idempotency-Key")


def test_the_cookie_of_the_page_reads_and_never_writes(app: Application) -> None:
    with TestClient(app, cookies={"beds_session": ALL}) as person:
        assert person.get("/v1").status_code == 200
        assert person.post("/v1/Notices", json=NOTICE).status_code == 401


def test_an_ended_ticket_that_was_seen_is_not_streamed_again(web: TestClient) -> None:
    address = web.post("/v1/Notices", json=NOTICE, headers={"Prefer": "respond-async"}).headers["location"]
    with web.stream("GET", f"{address}/events") as stream:
        seen = next(line for line in stream.iter_lines() if line.startswith("id: ")).removeprefix("id: ")
    assert web.get(f"{address}/events", headers={"Last-Event-ID": seen}).status_code == 204


def test_an_open_stream_is_no_request_at_work() -> None:
    limits = Limits(1)
    role = HttpRole(concurrency=1, streams=1)
    caller = Caller("key:x", {"r": role})
    with limits.streaming(caller):
        with limits.admitted(caller), pytest.raises(Problem), limits.admitted(caller):
            pass
        with pytest.raises(Problem, match="event streams"), limits.streaming(caller):
            pass
    with limits.streaming(caller):
        pass


def test_mounted_under_a_prefix_its_addresses_have_it(app: Application) -> None:
    mounted = Starlette(routes=[Mount("/data", app=app)])
    with TestClient(app), TestClient(mounted, headers=as_caller(ALL)) as web:
        made = web.post("/data/v1/Airlines", json={"carrier": "ZZ", "name": "Zed"})
        assert made.headers["location"] == "/data/v1/Airlines/ZZ"
        assert web.get(made.headers["location"]).status_code == 200
        assert 'href="/data/static/style.css"' in web.get("/data/ui/sign-in").text
        assert web.get("/data/static/style.css").status_code == 200
        assert web.get("/data/ui/", follow_redirects=False).headers["location"] == "/data/ui/sign-in"
