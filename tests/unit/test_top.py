"""`beds top`: what was not measured is not shown as zero."""

from __future__ import annotations

from rich.console import Console

from beds.cli.top import _table
from beds.client.overview import Row
from beds.transport.topology import Depth


def test_a_client_that_may_not_read_rates_sees_none() -> None:
    row = Row(Depth(3, 2)).to_wire(30.0)
    assert (row["waiting"], row["consumers"]) == (3, 2)
    assert all(row[name] is None for name in ("per_second", "errors", "p50_ms", "busy"))
    assert "operator_url" in str(_table({"rel.read": row}, 30.0).caption)


def test_an_idle_queue_has_a_rate_of_zero() -> None:
    row = Row(Depth(0, 2), is_measured=True).to_wire(30.0)
    assert (row["per_second"], row["errors"], row["busy"]) == (0, 0, 0)
    assert "the last 30 s" in str(_table({"rel.read": row}, 30.0).caption)


def test_the_queue_s_name_is_whole_on_a_narrow_terminal_beside_the_rate_of_jobs() -> None:
    row = Row(Depth(3, 2), is_measured=True, records=30_000)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(_table({"job.warehouse": row.to_wire(30.0), "rel.read": row.to_wire(30.0)}, 30.0))
    assert "job.warehouse" in capture.get()
    assert "rel.read" in capture.get()
