"""Faults that a review found, each with its right behavior."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from beds.client import loop as loops
from beds.config.http import Http, HttpRole
from beds.config.local_key import local_key
from beds.config.settings import load_settings
from beds.domain.ticket import Progress, TicketState, TicketStatus
from beds.http.access import Caller
from beds.http.limits import Limits
from beds.http.problems import Problem
from beds.http.representations import ticket_json
from tests.unit.http.conftest import ALL, KEYS, ROLES, application, as_caller, key


def caller(name: str, **limits: Any) -> Caller:
    return Caller(name, {"r": HttpRole(**limits)})


def test_a_job_reads_a_body_without_a_content_type(web: TestClient) -> None:
    refused = web.post("/v1/jobs/weather_cold", content=b'{"dry_run": "yes"}')
    assert (refused.status_code, refused.json()["field"]) == (422, "dry_run")


def test_a_role_that_fills_arguments_starts_no_job() -> None:
    roles = {**ROLES, "bound": {"allow": ["*"], "bind": {"carrier": "value:AA"}}}
    with TestClient(application(roles=roles, key=[key("b", "b", "bound")]), headers=as_caller("b")) as web:
        assert web.get("/v1/jobs").json() == {"jobs": []}
        assert web.post("/v1/jobs/weather_cold", json={}).status_code == 403


def test_tools_take_posts_of_a_usual_size_alone() -> None:
    with TestClient(application(max_body_bytes=10_000), headers=as_caller(ALL)) as web:
        assert web.get("/mcp").status_code == 405
        assert web.post("/mcp", content=b"x" * 20_000).status_code == 413


def test_the_page_is_limited_as_everything_else() -> None:
    roles = {**ROLES, "few": {"allow": ["*"], "rate": 0.001, "burst": 3}}
    with TestClient(application(roles=roles, key=[*KEYS, key("few", "few", "few")])) as web:
        web.cookies.set("beds_session", "few")
        assert [web.get("/ui/templates").status_code for _ in range(5)] == [200, 200, 200, 429, 429]


def test_a_sign_in_is_small(web: TestClient) -> None:
    own = {"Origin": "http://testserver"}
    assert web.post("/ui/sign-in", data={"token": "x" * 30_000}, headers=own).status_code == 413
    refused = web.put("/ui/")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")


def test_a_turn_that_leads_to_another_queue_is_not_lost() -> None:
    async def story() -> list[str]:
        limits, order = Limits(2), list[str]()
        busy, narrow, third = caller("z"), caller("x", concurrency=1), caller("y")
        leave, hold = asyncio.Event(), asyncio.Event()

        async def stay(who: Caller, name: str, until: asyncio.Event) -> None:
            async with limits.awaited(who, 5):
                order.append(name)
                await until.wait()

        first = [asyncio.create_task(stay(busy, "z", leave)) for _ in range(2)]
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(stay(narrow, "x", hold)) for _ in range(2)]
        waiting.append(asyncio.create_task(stay(third, "y", hold)))
        await asyncio.sleep(0.01)
        leave.set()
        await asyncio.gather(*first)
        await asyncio.sleep(0.05)
        seen = list(order)
        hold.set()
        await asyncio.gather(*waiting)
        assert limits.in_flight == 0
        return seen

    assert sorted(asyncio.run(story())[2:]) == ["x", "y"]


def test_a_cancelled_wait_gives_its_token_back() -> None:
    async def story() -> int:
        limits, one = Limits(1), caller("a", rate=1, burst=1)

        async def wait() -> None:
            async with limits.awaited(one, 60):
                pass

        with limits.admitted(one):
            tasks = [asyncio.create_task(wait()) for _ in range(5)]
            await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return limits._bucket("a", one.limits).take(one.limits) < 2  # a debt of five tokens would take longer

    assert asyncio.run(story())


def test_a_query_that_is_no_utf_8_and_a_table_with_one_name_twice_are_refused(web: TestClient) -> None:
    assert web.get("/v1/Airlines:by_carrier?carrier=%ff").status_code == 400
    table = "carrier,name,name\r\nZZ,a,b\r\n"
    refused = web.post("/v1/Airlines:batch", content=table, headers={"Content-Type": "text/csv"})
    assert (refused.status_code, "twice" in refused.json()["detail"]) == (400, True)
    call = {"template": "Airlines", "operation": "all", "cursor": 0}
    assert web.post("/v1:batch", json=[call]).json()[0]["status"] == 422


def test_subscriptions_count_as_streams() -> None:
    roles = {**ROLES, "one": {"allow": ["*"], "streams": 1}}
    with TestClient(application(roles=roles, key=[key("one", "one", "one")]), headers=as_caller("one")) as web:
        ticket = web.post("/v1/Airlines", json={"carrier": "ZZ", "name": "Z"}, headers={"Prefer": "respond-async"})
        guid = ticket.json()["ticket"]
        with web.websocket_connect("/v1/ws", headers=as_caller("one")) as socket:
            socket.send_json({"id": 1, "op": "subscribe", "ticket": guid})
            assert [socket.receive_json()["status"], socket.receive_json()["event"]] == [200, "ended"]
            socket.send_json({"id": 2, "op": "subscribe", "ticket": guid})  # the first one has ended
            assert socket.receive_json()["status"] == 200


@pytest.mark.parametrize("host", ["localhost.example.com", "127.example.com", "0.0.0.0", "10.0.0.1"])
def test_only_a_loopback_address_is_one(host: str) -> None:
    assert not Http(listen=f"{host}:80").is_on_loopback
    assert Http(listen="127.0.0.2:80").is_on_loopback
    assert Http(listen="localhost:80").is_on_loopback
    assert Http(listen="[::1]:80").is_on_loopback


def test_two_processes_make_one_local_key(tmp_path: Path) -> None:
    (tmp_path / "beds.toml").write_text("")
    settings = load_settings(tmp_path / "beds.toml")
    first = local_key(settings)
    assert first is not None
    assert local_key(settings) == first
    assert [file.name for file in (tmp_path / ".beds").iterdir()] == ["http.key"]
    assert (tmp_path / ".beds" / "http.key").stat().st_mode & 0o077 == 0


def test_a_closed_loop_is_let_go() -> None:
    made = asyncio.new_event_loop()
    known = weakref.ref(made)
    wakeups = loops._Wakeups(made)
    done = made.create_future()
    made.close()
    wakeups.end(done)
    del made, done
    gc.collect()
    assert known() is None


def test_too_many_streams_are_told() -> None:
    limits, one = Limits(1), caller("a", streams=1)
    with limits.streaming(one), pytest.raises(Problem) as refused, limits.streaming(one):
        pass
    assert refused.value.status == 429


@pytest.mark.parametrize(
    ("kind", "body", "place"),
    [
        ("text/csv", "airport,title,status\r\nJFK,a,open\r\nJFK,b,none\r\n", "line 3: "),
        ("text/csv", "airport,title,status\r\nJFK,a,open\r\nJFK,,open\r\n", "line 3: lacks the required field title"),
        (
            "application/x-ndjson",
            '{"airport": "JFK", "title": "a", "status": "open"}\n\n{"airport": "JFKX"}\n',
            "line 3: ",
        ),
        ("application/json", '[{"airport": "JFK", "title": "a", "status": "none"}]', "records[0]: "),
    ],
)
def test_a_refused_upload_names_the_line(web: TestClient, kind: str, body: str, place: str) -> None:
    refused = web.post("/v1/Notices:batch", content=body, headers={"Content-Type": kind})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith(place), refused.json()


def test_a_key_has_the_claims_that_its_roles_bind() -> None:
    roles = {"r": {"allow": ["*"], "bind": {"carrier": "claim:cid"}}}
    with pytest.raises(ValueError, match="cid"):
        Http.model_validate({"roles": roles, "key": [key("k", "k", "r")]})
    Http.model_validate({"roles": roles, "key": [key("k", "k", "r", cid="AA")]})


def test_a_key_of_one_part_may_be_a_list(web: TestClient) -> None:
    web.post("/v1/Airlines", json={"carrier": "ZZ", "name": "Z"})
    call = {"template": "Airlines", "operation": "delete", "key": ["ZZ"]}
    assert web.post("/v1:batch", json=[call]).json()[0]["status"] == 200


def test_an_ended_ticket_shows_no_old_progress() -> None:
    status = TicketStatus("g", "a.b.g", TicketState.SUCCESS, progress=Progress(1, 2))
    assert ticket_json(status)["progress"] is None
    assert ticket_json(replace(status, state=TicketState.PROGRESS))["progress"] is not None
