"""`beds template list | show | models | new`."""

from __future__ import annotations

import click

from beds.cli.models import models
from beds.cli.new_template import new
from beds.cli.output import print_json, print_table
from beds.client.client import Client
from beds.client.deadline import DEFAULT_TIMEOUT
from beds.config import load_settings
from beds.domain.description import Description
from beds.templates.registry import TemplateRegistry


@click.group()
def template() -> None:
    """List and show templates, write them as typed code, and begin a new one."""


template.add_command(models)
template.add_command(new)


@template.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_templates(config: str | None, as_json: bool) -> None:
    """All templates of this node."""
    registry = TemplateRegistry.from_folder(load_settings(config).schema_path)
    rows = [
        {
            "name": t.name,
            "store": str(t.store),
            "key": t.key_name,
            "operations": [str(o) for o in t.operations()],
            "fetch": list(t.fetch),
            "description": t.template.description,
        }
        for t in registry.values()
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(
            ["name", "store", "key", "fetch", "description"],
            ([r["name"], r["store"], r["key"], ", ".join(r["fetch"]), r["description"]] for r in rows),
        )


@template.command()
@click.argument("name")
@click.option("--live", is_flag=True, help="Ask a worker which arguments the fetches take by the DBA's objects.")
@click.option("--timeout", type=float, default=DEFAULT_TIMEOUT, show_default=True, help="Seconds, for --live.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(config: str | None, name: str, live: bool, timeout: float, as_json: bool) -> None:
    """One template: its fields, and the object behind each operation. With --live, the arguments of its fetches.

    \b
    Examples:
      beds template show Flights
      beds template show Flights --live
    """
    if live:
        with Client(load_settings(config)) as client:
            _print_description(client.describe(name, timeout=timeout), as_json=as_json)
        return
    found = TemplateRegistry.from_folder(load_settings(config).schema_path)[name]
    if as_json:
        print_json(found.model_dump(mode="json", exclude_none=True))
        return
    version = f", version {found.version}" if found.version else ""
    click.echo(f"{found.name} ({found.store}), key {found.key_name}{version}: {found.template.description}")
    click.echo(f"{found.file}\n")
    print_table(
        ["operation", "object", "limit", "pages by", "may be left out"],
        (
            [
                table,
                ref.object,
                getattr(ref, "limit", None),
                ", ".join(getattr(ref, "cursor", ())) or None,
                ", ".join(getattr(ref, "optional", ())) or None,
            ]
            for table, (_, ref) in found.refs().items()
        ),
    )
    click.echo()
    print_table(
        ["field", "type", "required", "rules", "description"],
        (
            [
                field,
                spec.type,
                "yes" if spec.required else None,
                ", ".join(
                    f"{k} {v}"
                    for k, v in spec.model_dump(
                        mode="json", exclude_defaults=True, exclude={"type", "required", "description"}
                    ).items()
                )
                or None,
                spec.description,
            ]
            for field, spec in found.fields.items()
        ),
    )


def _print_description(found: Description, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_wire())
        return
    print_table(
        ["operation", "object", "kind", "pages", "limit", "description"],
        (
            [
                table,
                operation.object,
                operation.kind,
                "yes" if operation.pages else None,
                operation.limit or None,
                operation.problem or operation.description,
            ]
            for table, operation in found.operations.items()
        ),
    )
    click.echo()
    print_table(
        ["fetch", "argument", "type", "declared", "required", "description"],
        (
            [
                table.removeprefix("fetch."),
                argument.name,
                " or ".join(argument.types),
                argument.declared,
                "yes" if argument.required else None,
                argument.description,
            ]
            for table, operation in found.operations.items()
            for argument in operation.args
        ),
    )
