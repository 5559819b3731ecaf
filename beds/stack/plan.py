"""What the stack is: its ports, its passwords, and the BEDS_… variables that tell the rest of BEDS about it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

from beds.errors import StackError

DEFAULT_BASE = 23000
"""First of the ports: MariaDB +306, MongoDB +17, RabbitMQ +672 … +674, epmd +369, Prometheus +464. All stay
below 32768, where Linux begins to hand out ports of its own (a reconnect loop could otherwise connect to itself)."""
LOWEST_BASE, HIGHEST_BASE = 1024, 32768 - 700
DATABASE = "beds"
VHOST = "beds"
USERS = ("amqp_admin", "amqp_worker", "amqp_app", "rel_dba", "rel_broker", "rec_root", "rec_dba", "rec_broker")


@dataclass(frozen=True)
class Plan:
    """Ports and passwords of one stack; made once and kept in `.beds/stack.json` (mode 600)."""

    folder: Path
    base: int = DEFAULT_BASE
    passwords: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def mariadb_port(self) -> int:
        return self.base + 306

    @property
    def mongodb_port(self) -> int:
        return self.base + 17

    @property
    def amqp_port(self) -> int:
        return self.base + 672

    @property
    def management_port(self) -> int:
        return self.base + 673

    @property
    def dist_port(self) -> int:
        return self.base + 674

    @property
    def epmd_port(self) -> int:
        return self.base + 369

    @property
    def env_file(self) -> Path:
        return self.folder / "stack.env"

    def amqp_url(self, user: str) -> str:
        return f"amqp://beds_{user}:{quote(self.passwords[f'amqp_{user}'])}@127.0.0.1:{self.amqp_port}/{VHOST}"

    def mongo_uri(self, user: str, auth_source: str = DATABASE) -> str:
        return (
            f"mongodb://beds_{user}:{quote(self.passwords[f'rec_{user}'])}@127.0.0.1:{self.mongodb_port}/{DATABASE}"
            f"?replicaSet=rs0&authSource={auth_source}"
        )

    def environment(self) -> dict[str, str]:
        """Everything that `beds.toml` leaves to the machine."""
        rel = {"HOST": "127.0.0.1", "PORT": str(self.mariadb_port), "DATABASE": DATABASE}
        return {
            "BEDS_AMQP__URL": self.amqp_url("app"),
            "BEDS_AMQP__WORKER_URL": self.amqp_url("worker"),
            "BEDS_DATABASES__REC__URI": self.mongo_uri("broker"),
            "BEDS_DATABASES__REC__DATABASE": DATABASE,
            **{f"BEDS_DATABASES__REL__{k}": v for k, v in rel.items()},
            "BEDS_DATABASES__REL__USER": "beds_broker",
            "BEDS_DATABASES__REL__PASSWORD": self.passwords["rel_broker"],
            "BEDS_METRICS__PROMETHEUS": f"127.0.0.1:{self.base + 464}",
            "BEDS_SCHEMA__DBA__REC__URI": self.mongo_uri("dba"),
            "BEDS_SCHEMA__DBA__REC__DATABASE": DATABASE,
            **{f"BEDS_SCHEMA__DBA__REL__{k}": v for k, v in rel.items()},
            "BEDS_SCHEMA__DBA__REL__USER": "beds_dba",
            "BEDS_SCHEMA__DBA__REL__PASSWORD": self.passwords["rel_dba"],
        }

    def flower_environment(self) -> dict[str, str]:
        """Lets Flower's page of the broker show the queues, and its API answer on loopback."""
        admin = f"beds_admin:{quote(self.passwords['amqp_admin'])}"
        return {
            "FLOWER_BROKER_API": f"http://{admin}@127.0.0.1:{self.management_port}/api/",
            "FLOWER_UNAUTHENTICATED_API": "1",
            "FLOWER_PORT": str(5555 if self.base == DEFAULT_BASE else self.base + 555),
        }

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {key: value for key, value in asdict(self).items() if key != "folder"}
        _write_private(self.folder / "stack.json", json.dumps(data, indent=1))
        _write_private(self.env_file, "".join(f"{k}={v}\n" for k, v in self.environment().items()))


def load_plan(folder: Path, base: int | None = None) -> Plan:
    """The plan of the stack under `folder`; a new one with new passwords when there is none.

    Args:
        folder: `.beds` beside beds.toml.
        base: first port; the one of the existing plan, or `DEFAULT_BASE`, when absent.

    Raises:
        StackError: the file cannot be read, or `base` is out of range or differs from that of an existing stack.
    """
    if base is not None and not LOWEST_BASE <= base <= HIGHEST_BASE:
        raise StackError(f"port base {base} is out of range", hint=f"choose one from {LOWEST_BASE} to {HIGHEST_BASE}")
    file = folder / "stack.json"
    if not file.exists() and (made := sorted(path.parent.name for path in folder.glob("*/.made"))):
        raise StackError(
            f"{file} is lost, with the passwords of {', '.join(made)}",
            hint="put it back, or `beds stack down --wipe` deletes the data; then start anew",
        )
    if not file.exists():
        passwords = {user: secrets.token_urlsafe(18) for user in USERS}
        return Plan(folder, base or DEFAULT_BASE, passwords)
    try:
        data = json.loads(file.read_text())
        plan = Plan(folder, int(data["base"]), {user: str(data["passwords"][user]) for user in USERS})
        if not LOWEST_BASE <= plan.base <= HIGHEST_BASE:
            raise ValueError("a port base out of range")
    except OSError as error:
        raise StackError(
            f"{file} cannot be read: {error.strerror}", hint="run this as the user who started the stack"
        ) from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise StackError(
            f"{file} cannot be read", hint="`beds stack down --wipe` removes the stack and its data; then start anew"
        ) from None
    if base is not None and base != plan.base:
        raise StackError(
            f"this stack was made with port base {plan.base}, which its data names",
            hint="`beds stack down --wipe` deletes that data; then choose another",
        )
    return plan


def _write_private(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(text)
