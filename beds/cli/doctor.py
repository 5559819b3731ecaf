"""`beds doctor`: tests the running system end to end."""

from __future__ import annotations

import click

from beds.cli.node import print_checks
from beds.config import load_settings
from beds.node.doctor import examine

EX_UNWELL = 1


@click.command()
@click.option("--timeout", type=click.FloatRange(1, 300), default=15.0, show_default=True, help="Seconds for a probe.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def doctor(config: str | None, timeout: float, as_json: bool) -> None:
    """Send probes through the running system, as any client does, and print the result of each.

    Every pool and its database must reply, also after a retry. An unroutable event must be refused, a dead one must
    reach msDead, and lineage must arrive. Exit code 1 when a probe fails.

    It writes no data except the probes' own records in msDead, msLineage and msMetrics.
    """
    if not print_checks(examine(load_settings(config), timeout), as_json=as_json):
        raise SystemExit(EX_UNWELL)
