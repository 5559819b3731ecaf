"""Jobs over HTTP: the rules, starts, reports, orders, and what belongs to a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from beds.client.call import JobCall
from beds.client.flows import FILES, PAGES, REJECTS, Handle
from beds.http.node import Node
from beds.http.problems import Problem, forbidden, not_found
from beds.http.requests import EVENT_ID, Asked
from beds.http.tickets import status_reply
from beds.http.values import plain, plain_record, record_from_json
from beds.templates.rules import JobRule
from beds.wire import codec


async def on_jobs(node: Node, asked: Asked, rest: tuple[str, ...]) -> Response:
    """`/v1/jobs`: the rules, starts, reports, orders, and what belongs to a job."""
    caller = asked.caller
    match rest:
        case ():
            asked.allow("GET")
            return asked.reply(
                {"jobs": [_rule(rule) for rule in node.templates.jobs.values() if caller.may_run(rule.name)]}
            )
        case (name,) if asked.method == "POST" and ":" not in name:
            return await _start(node, asked, name)
        case (target,):
            guid, _, order = target.partition(":")
            handle = node.handle(guid, caller.actor)
            if order:
                if order not in ("pause", "resume"):
                    raise not_found()
                asked.allow("POST")
                report = await node.run(node.flows.job_order(order, handle, node.http.timeout))
                return asked.reply(plain(codec.encode(report)))
            if asked.method == "DELETE":
                flow = node.flows.cancel(handle.guid, caller.actor, node.http.timeout, caller.actor)
                return status_reply(asked, await node.run(flow))
            asked.allow("GET", "DELETE", "POST")
            return asked.reply(await job_json(node, handle))
        case (guid, ("rejects" | "pages" | "files") as what):
            asked.allow("GET")
            template = {"rejects": REJECTS, "pages": PAGES, "files": FILES}[what]
            cursor, handle = asked.query.get("cursor", ""), node.handle(guid, caller.actor)
            page = await node.run(node.flows.job_records(handle, template, cursor, node.http.timeout))
            records = [record for each in page for record in _job_records(what, each)]
            return asked.reply({"records": records, "cursor": page.cursor or None, "complete": not page.cursor})
    raise not_found()


def _job_records(what: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    if what == "pages":  # one stored record holds a page of the aggregation's result
        return [plain_record(codec.encode(each)) for each in codec.loads(record["records"])]
    return [plain_record(codec.encode(dict(record)))]


def _rule(rule: JobRule) -> dict[str, Any]:
    return {"name": rule.name, "kind": str(rule.kind), "description": rule.job.description}


async def job_json(node: Node, handle: Handle) -> Any:
    """A job's report in plain JSON."""
    return plain(codec.encode(await node.run(node.flows.job_report(handle, node.http.timeout))))


async def _start(node: Node, asked: Asked, name: str) -> Response:
    if not asked.caller.may_run(name):
        raise not_found() if name not in node.templates.jobs else forbidden(f"start the job {name}")
    rule = node.templates.jobs[name]
    given = await asked.json(empty={})
    if not isinstance(given, dict) or (surplus := given.keys() - {"args", "dry_run", "restore", "verify"}):
        field = min(map(str, surplus)) if isinstance(given, dict) else "body"
        raise Problem(422, "unknown_field", "The body takes args, dry_run, restore and verify.", field=field[:40])
    source = node.templates[rule.job.source]
    args = record_from_json(given.get("args", {}), {**source.fields, **source.fetch[rule.job.read].args})
    if not isinstance(args, dict):
        raise Problem(422, "wrong_type", "args takes an object.", field="args")
    restore, verify = (_guid(given, name) for name in ("restore", "verify"))
    if not isinstance(dry_run := given.get("dry_run", False), bool):
        raise Problem(422, "wrong_type", "dry_run takes true or false.", field="dry_run")
    call = JobCall(name, args, dry_run, restore, verify, asked.caller.actor)
    ticket = await node.run(node.flows.submit_job(call, asked.idempotency_key, node.http.timeout))
    asked.headers[EVENT_ID] = ticket.event_id
    body = {"job": ticket.guid, "ticket": ticket.guid, "event_id": ticket.event_id}
    return asked.reply(body, 202, {"Location": f"{asked.root}/v1/jobs/{ticket.guid}"})


def _guid(given: Mapping[str, Any], name: str) -> str:
    guid = given.get(name) or ""
    if not isinstance(guid, str):
        raise Problem(422, "wrong_type", f"{name} takes the id of a job.", field=name)
    return guid
