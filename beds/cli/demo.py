"""`beds demo`: starts the whole system and runs the sample domain."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from beds.cli.http import print_address
from beds.cli.output import print_json, print_records
from beds.cli.up import bring_up
from beds.client.client import Client
from beds.demo import questions
from beds.demo.data import COUNTS
from beds.demo.load import Loaded, count, load
from beds.domain.reply import Record
from beds.errors import CallTimeout, StackError, TransportError
from beds.node.daemon import Daemon

WORKERS_SECONDS = 60.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all figures at the end.")
@click.pass_obj
def demo(config: str | None, as_json: bool) -> None:
    """Start the stack and the workers, load the sample data through BEDS, and ask it questions.

    It can be repeated: existing data is left unchanged.
    """
    say = (lambda _line: None) if as_json else click.echo
    started = time.monotonic()
    settings, workers = bring_up(config, say)
    with Client(settings) as client:
        _wait_for_workers(client, workers)
        say("ready")
        say("— data, through BEDS: every batch one event over RabbitMQ")
        loaded = _load_all(client, show=not as_json)
        counts = {template: count(client, template) for template in COUNTS}
        routes = questions.busiest_routes(client)
        flight, weather = questions.weather_at_worst_delay(client)
        notice = questions.life_of_a_notice(client)
    seconds = time.monotonic() - started
    if as_json:
        print_json(
            {
                "seconds": round(seconds, 1),
                "loaded": [
                    {"template": x.template, "records": x.records, "seconds": round(x.seconds, 2)} for x in loaded
                ],
                "counts": counts,
                "busiest_routes": routes,
                "worst_delay": {"flight": flight, "weather": weather},
            }
        )
    else:
        _print_answers(counts, routes, flight, weather, notice)
        click.echo(f"\ndone in {seconds:.0f} s\n\n{_HOW_TO_GO_ON}")
        if settings.services.app_server.is_local:
            print_address(settings)
    if counts != COUNTS:
        raise StackError(
            f"the counts are {counts}, the source has {dict(COUNTS)}",
            hint="did something else write to these tables? `beds stack down --wipe`, then `beds demo` starts afresh",
        )


_HOW_TO_GO_ON = """How to go on: the servers and workers keep running.
  beds call Airports.fetch_records --using by_faa faa=JFK
  beds call Flights.fetch_records --using by_route origin=JFK dest=BOS --limit 5
  beds template list
  celery -A beds inspect active_queues
  celery -A beds flower --address=127.0.0.1   its user, password and port: `beds stack env`
  beds node restart                      after a change of a template
  beds stack down                        stops everything; --wipe deletes the data, too
Before these, once in a terminal: source .venv/bin/activate"""


def _wait_for_workers(client: Client, workers: Daemon) -> None:
    """Wait until workers of both stores reply. Raises StackError with the end of the workers' log."""
    deadline = time.monotonic() + WORKERS_SECONDS
    while True:
        try:
            for template in ("Airlines", "Weather"):
                client.call("fetch_records", template, using="count", timeout=5)
            return
        except (CallTimeout, TransportError):
            if workers.process() is None or time.monotonic() > deadline:
                raise StackError(
                    f"the workers do not answer:\n{workers.tail()}", hint=f"the whole log: {workers.log}"
                ) from None


@dataclass
class _Meter:
    """Moves one bar of the progress display, and shows records per second beside it."""

    progress: Progress
    task: TaskID
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def __call__(self, more: int) -> None:
        self.done += more
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        self.progress.update(self.task, completed=self.done, rate=rate)


def _load_all(client: Client, *, show: bool) -> list[Loaded]:
    console = Console(stderr=True)
    found = []
    with Progress(
        TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>9,.0f} records/s"), TimeElapsedColumn(),
        console=console, transient=True, disable=not (show and console.is_terminal),
    ) as progress:  # fmt: skip
        for template, total in COUNTS.items():
            task = progress.add_task(template, total=total, rate=0.0)
            result = load(client, template, _Meter(progress, task))
            found.append(result)
            if show:
                how = f"{result.records / result.seconds:>9,.0f} records/s" if result.seconds else "were there already"
                click.echo(f"{template:10} {result.records:>8,} records  {result.seconds:>6.1f} s  {how}")
    return found


def _print_answers(
    counts: dict[str, int], routes: list[Record], flight: Record, weather: Record, notice: list[str]
) -> None:
    click.echo("\n— counts, read back")
    print_records([counts])
    click.echo("\n— the ten busiest routes (MariaDB)")
    print_records(routes)
    click.echo(
        f"\n— the worst delay at {flight['origin']}: {flight['carrier']} {flight['flight']} to {flight['dest']}, "
        f"{flight['dep_delay']} minutes late; the weather at that hour (MongoDB)"
    )
    print_records([weather])
    click.echo("\n— the life of a notice (MongoDB)")
    for line in notice:
        click.echo(line)
