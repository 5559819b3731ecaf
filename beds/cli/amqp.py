"""`beds amqp definitions`: RabbitMQ's users and rights, as beds.toml asks for them."""

from __future__ import annotations

import json

import click

from beds.config import load_settings
from beds.transport.rights import definitions as definitions_of
from beds.transport.rights import monitor_of, users_of, vhost_of


@click.group()
def amqp() -> None:
    """The setup of RabbitMQ for BEDS."""


@amqp.command()
@click.option("--key", "keys", multiple=True, help="A routing key that the client may publish to; all when absent.")
@click.pass_obj
def definitions(config: str | None, keys: tuple[str, ...]) -> None:
    """Print a definitions file: the vhost, the client's and the workers' users, and the least rights they need.

    Users, vhost and passwords are those of [amqp] url and worker_url, and of [flower] broker_api where it is set. Only
    salted hashes of the passwords are printed.

    \b
    Examples:
      beds amqp definitions > definitions.json && rabbitmqctl import_definitions definitions.json
      beds amqp definitions --key rec.read --key rel.read --key calgon     a client that reads
    """
    settings = load_settings(config)
    users = [*users_of(settings.amqp, keys), *monitor_of(settings.flower)]
    click.echo(json.dumps(definitions_of(vhost_of(settings.amqp.client_url), users), indent=2))
