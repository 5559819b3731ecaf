"""`beds http`: the app server alone, and keys for its callers."""

from __future__ import annotations

import importlib.util
import os
import re
import sys

import click

from beds.cli.output import print_json
from beds.config import Settings, load_settings
from beds.config.http import KEY_NAME
from beds.config.local_key import key_file, local_key, new_key, sha256_of
from beds.config.settings import CONFIG_VARIABLE
from beds.errors import ConfigurationError


def print_address(settings: Settings) -> None:
    """Print where the app server of this node is, and the key that opens it."""
    address = f"{'https' if settings.http.tls_certificate else 'http'}://{settings.http.listen}"
    click.echo(f"the page: {address}/ui/    HTTP: {address}/v1    its reference: {address}/docs")
    if (key := local_key(settings)) is not None:
        click.echo(f"  its key, also in {key_file(settings)}: {key}")


@click.group(invoke_without_command=True)
@click.pass_context
def http(ctx: click.Context) -> None:
    """Run the app server in the foreground: HTTP, REST and WebSocket for clients outside.

    \b
    Examples:
      beds http                 what [http] of beds.toml says
      beds http key shop        make a key for a program
    """
    if ctx.invoked_subcommand:
        return
    settings = load_settings(ctx.obj)
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise ConfigurationError(
                f"`beds http` needs {name}, which is not installed", hint="pip install 'beds[http]'"
            )
    print_address(settings)
    sys.stdout.flush()
    environment = {**os.environ, CONFIG_VARIABLE: str(settings.file)}
    os.execve(sys.executable, [sys.executable, "-m", "beds.http"], environment)


@http.command()
@click.argument("name", metavar="NAME")
@click.option("--role", "roles", multiple=True, help="A role of [http.roles]; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def key(name: str, roles: tuple[str, ...], as_json: bool) -> None:
    """Make a key for a program. The program gets the key; beds.toml gets its SHA-256.

    \b
    Example:
      beds http key shop --role shop
    """
    if re.fullmatch(KEY_NAME, name) is None:
        raise click.UsageError(f"{name!r} is no name of a key: letters, digits, `_`, `.` and `-`, at most 100")
    made = new_key()
    if as_json:
        print_json({"name": name, "key": made, "sha256": sha256_of(made)})
        return
    click.echo(f"for the program, and shown only now:\n  {made}\n\nfor beds.toml:")
    given = ", ".join(f'"{role}"' for role in roles)
    click.echo(f'  [[http.key]]\n  name = "{name}"\n  sha256 = ["{sha256_of(made)}"]\n  roles = [{given}]')
