"""`beds`: its commands and their output, imported when used, and the exit codes of errors."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from beds.errors import BedsError, ConfigurationError

MESSAGE_CHARACTERS = 4000
# By import path, so that `beds call` runs without a database driver.
_COMMANDS: Mapping[str, tuple[str, str]] = {
    "init": ("beds.cli.init:init", "Make a new project."),
    "up": ("beds.cli.up:up", "Start servers, schema and workers on this machine."),
    "down": ("beds.cli.up:down", "Stop the workers and the servers."),
    "call": ("beds.cli.call:call", "Execute one operation and print the reply."),
    "submit": ("beds.cli.call:submit", "Submit one operation and print its ticket."),
    "ticket": ("beds.cli.ticket:ticket", "Show, wait for and cancel a ticket."),
    "tickets": ("beds.cli.ticket:tickets", "List the newest tickets, or those in one state."),
    "job": ("beds.cli.job:job", "Start, watch and steer jobs: aggregations, migrations, the warehouse."),
    "jobs": ("beds.cli.job:jobs", "List jobs."),
    "dead": ("beds.cli.dead:dead", "Look at dead events, replay and discard them."),
    "lineage": ("beds.cli.lineage:lineage", "Show what a request set off."),
    "logs": ("beds.cli.logs:logs", "Show and follow the log records of all nodes."),
    "audit": ("beds.cli.logs:audit", "Show who changed what."),
    "top": ("beds.cli.top:top", "Watch queues, rates and latencies."),
    "template": (
        "beds.cli.template:template",
        "Show templates, write them as typed Python or JSON Schema, begin a new one.",
    ),
    "schema": ("beds.cli.schema:schema", "Apply, compare and check the databases' schema."),
    "topology": ("beds.cli.topology:topology", "Declare and show exchanges and queues."),
    "amqp": ("beds.cli.amqp:amqp", "Print the users and rights that RabbitMQ needs."),
    "node": ("beds.cli.node:node", "Run this node's workers."),
    "http": ("beds.cli.http:http", "Run the app server, and make keys for its callers."),
    "doctor": ("beds.cli.doctor:doctor", "Test the running system by probes."),
    "stack": ("beds.cli.stack:stack", "Start and stop a local RabbitMQ, MariaDB and MongoDB."),
    "completion": ("beds.cli.completion:completion", "Print the completion script of a shell."),
    "demo": ("beds.cli.demo:demo", "Load the sample data through BEDS and ask it questions."),
}

# The codes of sysexits.h, so that a script can choose its next step.
EXIT_CODES: Mapping[str, int] = {
    "invalid_payload": 65, "missing_field": 65, "unknown_field": 65, "wrong_type": 65, "too_long": 65,
    "out_of_range": 65, "body_too_large": 65, "invalid_cursor": 65,
    "unknown_template": 64, "unknown_operation": 64, "unknown_fetch": 64, "unknown_rule": 64,
    "not_found": 66, "unknown_ticket": 66, "ticket_expired": 66,
    "store_unavailable": 69, "broker_unavailable": 69, "broker_blocked": 69, "overloaded": 69, "unroutable": 69,
    "internal": 70, "dead_event": 70,
    "stack": 71,
    "call_timeout": 75,
    "permission_denied": 77, "store_denied": 77,
    "configuration": 78, "template": 78, "schema": 78, "schema_mismatch": 78, "schema_drift": 78,
    "topology_mismatch": 78, "rule": 78,
}  # fmt: skip
EX_IOERR = 74
EX_INTERRUPTED = 130
"""The shells' exit code after Ctrl-C."""
EX_FAILED = 1
"""The operation was refused for another reason: a conflict, a rule of the business, …"""


class LazyGroup(click.Group):
    """A group that imports a command only to run it, not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        target, _ = _COMMANDS[name]
        module, attribute = target.split(":")
        try:
            return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("beds"):
                raise
            missing = ConfigurationError(
                f"`beds {name}` needs {error.name}, which is not installed",
                hint="pip install 'beds[demo]'",
            )
            print_error(missing, as_json=False)
            raise SystemExit(exit_code(missing)) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="beds")
@click.option("--config", metavar="FILE", help="The node's beds.toml (else $BEDS_CONFIG, else ./beds.toml).")
@click.pass_context
def cli(ctx: click.Context, config: str | None) -> None:
    """BEDS: back-end data services over RabbitMQ.

    \b
    Examples:
      beds stack up                                            a local RabbitMQ, MariaDB and MongoDB
      beds schema apply                                        bring both databases to schema/
      beds node run                                            this node's workers
      beds call Airports.fetch_records --using by_faa faa=JFK  ask
    """
    ctx.obj = config
    if config:
        from beds.config.settings import CONFIG_VARIABLE  # imports pydantic, which `beds --help` does not need

        os.environ[CONFIG_VARIABLE] = str(Path(config).resolve())  # celeryconfig.py reads the file named here


def exit_code(error: BedsError) -> int:
    """The exit code for an error; 1 if sysexits.h has none for it."""
    return EXIT_CODES.get(error.code, EX_FAILED)


def print_error(error: BedsError, *, as_json: bool) -> None:
    """Print an error to standard error: as one JSON object, or as message, hint and event."""
    if as_json:
        _print_json(error.to_wire())
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]{error.code}[/]:", end=" ")
    console.print(_lines(error.message), markup=False)
    if error.hint:
        console.print(f"  hint:  {_lines(error.hint)}", markup=False)
    if error.event_id:
        console.print(f"  event: {_lines(error.event_id)}", markup=False)


def _lines(text: str) -> str:
    """A text that may come from a worker, without escape sequences; its lines are kept."""
    from beds.cli.output import printable

    return "\n".join(printable(line, MESSAGE_CHARACTERS) for line in text.splitlines())


def _print_json(error: Mapping[str, Any]) -> None:
    from beds.cli.output import json_text

    click.echo(json_text({"error": error}), err=True)


def main() -> Any:
    """Entry point. Prints every expected error and exits with its code."""
    as_json = "--json" in sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # escapes a letter that the terminal's encoding lacks
    try:
        code = cli(standalone_mode=False)
        sys.stdout.flush()
        raise SystemExit(code if isinstance(code, int) else 0)
    except BedsError as error:
        print_error(error, as_json=as_json)
        raise SystemExit(exit_code(error)) from None
    except click.ClickException as error:
        if as_json:
            _print_json({"code": "usage", "message": error.format_message(), "detail": {}, "hint": "see --help"})
        else:
            error.show()
        raise SystemExit(error.exit_code) from None
    except click.Abort:
        raise SystemExit(EX_INTERRUPTED) from None
    except OSError as error:
        _end_with(error)


def _end_with(error: OSError) -> NoReturn:
    """Exit after an error of the system, with its message and without a traceback."""
    if error.errno == errno.EPIPE:  # `beds … | head`
        with contextlib.suppress(OSError):
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 — Python flushes it once more at its end
        raise SystemExit(0) from None
    where = f": {error.filename}" if error.filename else ""
    click.echo(f"beds: {error.strerror or type(error).__name__}{where}", err=True)
    with contextlib.suppress(OSError):
        sys.stdout.close()
    raise SystemExit(EX_IOERR) from None
