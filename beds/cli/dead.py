"""`beds dead list | show | replay | discard`: events that a queue gave up on, over AMQP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from beds.cli.clients import operator_client, records_client
from beds.cli.output import how_many, print_json, print_table, printable
from beds.client.client import Client
from beds.client.tickets import user_name
from beds.domain.event import Operation
from beds.domain.reply import Page, Record
from beds.errors import MalformedEvent, NotFound
from beds.wire import codec

AT_ONCE = 100
"""Ids in one request."""


@click.group()
def dead() -> None:
    """Events that a queue gave up on: they ended their worker each time, or were no events.

    \b
    Examples:
      beds dead list
      beds dead show 0f9c1c1e-…
      beds dead replay 0f9c1c1e-…            with the same guid, ticket and idempotency key
      beds dead replay --queue rec.write     all of one queue
      beds dead discard --reason rejected    what was no event
    """


_queue = click.option("--queue", help="Those of this queue.")
_reason = click.option("--reason", help="Those with this reason: delivery_limit, rejected, expired, maxlen.")
_timeout = click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds for each question.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@dead.command("list")
@_queue
@_reason
@click.option("--state", type=click.Choice(["dead", "replayed", "discarded"]), default="dead", show_default=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many, at most.")
@click.option("--cursor", default="", help="The cursor of the page before.")
@_timeout
@_json
@click.pass_obj
def list_(
    config: str | None, queue: str | None, reason: str | None, state: str, limit: int, cursor: str, timeout: float,
    as_json: bool,
) -> None:  # fmt: skip
    """List dead events, oldest first."""
    with records_client(config) as client:
        page = _page(client, "waiting", _filters(queue, reason, state), timeout, limit, cursor)
    if as_json:
        print_json(page.to_wire())
        return
    columns = ("dead_id", "at", "queue", "reason", "summary", "guid", "last_error")
    print_table(columns, [[record.get(name) for name in columns] for record in page])
    click.echo(how_many(page, "dead event"))


@dead.command()
@click.argument("dead_id")
@_timeout
@_json
@click.pass_obj
def show(config: str | None, dead_id: str, timeout: float, as_json: bool) -> None:
    """Print one dead event. DEAD_ID may also be its event's guid. Sensitive values are masked."""
    with records_client(config) as client:
        page = _page(client, "by_id", {"dead_id": dead_id[:36]}, timeout)
    if not page:
        raise NotFound(f"no dead event {dead_id}", hint="`beds dead list`")
    record = page[0]
    if as_json:
        print_json(record)
        return
    values = codec.loads(record.get("values") or "{}")
    print_table(["", ""], [*record.items(), *((f"  {name}", value) for name, value in values.items())])


def _order(verb: str, what: str) -> Any:
    @dead.command(verb, help=what)
    @click.argument("ids", nargs=-1)
    @_queue
    @_reason
    @click.option("--all", "everything", is_flag=True, help="All of them.")
    @_timeout
    @_json
    @click.pass_obj
    def order(
        config: str | None, ids: tuple[str, ...], queue: str | None, reason: str | None, everything: bool,
        timeout: float, as_json: bool,
    ) -> None:  # fmt: skip
        if bool(ids) + bool(queue or reason) + everything != 1:
            raise click.UsageError("name ids, or filter by --queue and --reason, or say --all")
        done: list[str] = []
        with operator_client(config) as client:
            filters = _filters(queue, reason, "dead")
            wanted = [_dead_id(client, id_, timeout) for id_ in ids] or list(_waiting(client, filters, timeout))
            failed: dict[str, str] = {}
            for start in range(0, len(wanted), AT_ONCE):
                some = {"ids": wanted[start : start + AT_ONCE], "by": user_name()}
                answer = client.ask(verb, some, timeout=timeout)
                done += answer["done"]
                failed |= answer.get("failed", {})
        if as_json:
            print_json({verb: done, "failed": failed})
        else:
            click.echo(f"{verb}ed {len(done)} of {len(wanted)}")
        for dead_id, why in failed.items():
            click.echo(f"{printable(dead_id, 36)}: {printable(why, 300)}", err=True)
        if missing := set(wanted) - set(done) - set(failed):
            raise NotFound(f"{len(missing)} of them are not there, or were dealt with before: {min(missing)}")

        if failed:
            raise MalformedEvent(f"{len(failed)} of {len(wanted)} could not be {verb}ed", hint="discard them")

    return order


replay = _order("replay", "Publish dead events once more; each keeps its guid, ticket and idempotency key.")
discard = _order("discard", "Give dead events up for good.")


def _dead_id(client: Client, name: str, timeout: float) -> str:
    """The id of a dead event; `name` may be its guid, which a ticket shows."""
    page = _page(client, "by_id", {"dead_id": name[:36]}, timeout)
    return str(page[0]["dead_id"]) if page else name


def _filters(queue: str | None, reason: str | None, state: str) -> dict[str, Any]:
    return {"state": state} | ({"queue": queue} if queue else {}) | ({"reason": reason} if reason else {})


def _page(
    client: Client, using: str, args: dict[str, Any], timeout: float, limit: int | None = None, cursor: str = ""
) -> Page:
    page = client.call(Operation.FETCH, "msDead", args, using=using, limit=limit, cursor=cursor, timeout=timeout)
    assert isinstance(page, Page)
    return page


def _waiting(client: Client, args: dict[str, Any], timeout: float) -> Iterator[str]:
    cursor, page = "", None
    while page is None or cursor:
        page = _page(client, "waiting", args, timeout, 1000, cursor)
        record: Record
        for record in page:
            yield record["dead_id"]
        cursor = page.cursor
