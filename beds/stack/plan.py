"""The plan of a local stack: its ports, its passwords, and the BEDS_… variables that configure BEDS for it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from beds.errors import StackError
from beds.node.daemon import port_is_free

DEFAULT_BASE = 23000
"""First of the ports: MariaDB +306, MongoDB +17, RabbitMQ +672 … +674, epmd +369, Prometheus +464, HTTP +80 and +81.
All stay below 32768, where Linux's ephemeral ports begin, since a reconnect loop could otherwise connect to itself."""
LOWEST_BASE, HIGHEST_BASE = 1024, 32768 - 700
MEMBERS = 3
"""Of RabbitMQ and MongoDB in a cluster; MariaDB has a primary and one replica."""
DATABASE = "beds"
VHOST = "beds"
USERS = (
    "amqp_admin",
    "amqp_worker",
    "amqp_app",
    "amqp_operator",
    "amqp_http",
    "flower",
    "rel_dba",
    "rel_broker",
    "rel_replicator",
    "rec_root",
    "rec_dba",
    "rec_broker",
)


OFFSETS = (306, 17, 672, 673, 674, 369, 464, 80, 81)
"""Offsets of the ports from their base."""


_LATER = ("amqp_operator", "amqp_http", "flower", "rel_replicator")
"""Users that earlier versions did not have."""


def free_base() -> int:
    """The first base, in steps of a thousand, whose ports are all free now; the default if there is none."""
    bases: list[int] = [*range(DEFAULT_BASE, HIGHEST_BASE, 1000), *range(2000, DEFAULT_BASE, 1000)]
    for base in bases:
        if all(port_is_free(base + offset) for offset in OFFSETS):
            return base
    return DEFAULT_BASE


def _shift(number: int) -> int:
    """How far the ports of a member lie behind those of the first."""
    return 0 if number == 1 else 700 + 40 * (number - 2)


@dataclass(frozen=True)
class Plan:
    """Ports and passwords of one stack. They are chosen once and kept in `.beds/stack.json` (mode 600).

    Args:
        folder: `.beds` beside beds.toml; of a further member, a folder in it.
        base: the first port.
        passwords: of `USERS`.
        is_cluster: whether each server has several members.
        number: of the member whose ports these are.
    """

    folder: Path
    base: int = DEFAULT_BASE
    passwords: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_cluster: bool = False
    number: int = 1

    def member(self, number: int) -> Plan:
        """The plan of a further member."""
        folder, base = self.folder / f"member{number}", self.base + _shift(number)
        return replace(self, folder=folder, base=base, number=number)

    @property
    def alone(self) -> Plan:
        """The same without the other members."""
        return replace(self, is_cluster=False)

    def _hosts(self, port: Callable[[Plan], int], members: int = MEMBERS) -> list[str]:
        """Host and port of each member."""
        plans = [self, *(self.member(n) for n in range(2, members + 1))] if self.is_cluster else [self]
        return [f"127.0.0.1:{port(each)}" for each in plans]

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
        return self.base - _shift(self.number) + 369  # one for all members

    @property
    def env_file(self) -> Path:
        return self.folder / "stack.env"

    def amqp_url(self, user: str) -> str:
        hosts = ",".join(self._hosts(lambda each: each.amqp_port))
        return f"amqp://beds_{user}:{quote(self.passwords[f'amqp_{user}'])}@{hosts}/{VHOST}"

    def mongo_uri(self, user: str, auth_source: str = DATABASE) -> str:
        hosts = ",".join(self._hosts(lambda each: each.mongodb_port))
        return (
            f"mongodb://beds_{user}:{quote(self.passwords[f'rec_{user}'])}@{hosts}/{DATABASE}"
            f"?replicaSet=rs0&authSource={auth_source}"
        )

    def environment(self) -> dict[str, str]:
        """The settings that beds.toml leaves to the environment."""
        rel = {"HOST": "127.0.0.1", "PORT": str(self.mariadb_port), "DATABASE": DATABASE}
        if self.is_cluster:
            rel["HOSTS"] = json.dumps(self._hosts(lambda each: each.mariadb_port, 2))
        return {
            "BEDS_AMQP__URL": self.amqp_url("app"),
            "BEDS_AMQP__WORKER_URL": self.amqp_url("worker"),
            "BEDS_AMQP__OPERATOR_URL": self.amqp_url("operator"),
            "BEDS_AMQP__HTTP_URL": self.amqp_url("http"),
            "BEDS_FLOWER__PORT": str(self.flower_port),
            "BEDS_FLOWER__BASIC_AUTH": f"beds:{self.passwords['flower']}",
            **({"BEDS_FLOWER__BROKER_API": self._management} if self.is_cluster else {}),
            "BEDS_DATABASES__REC__URI": self.mongo_uri("broker"),
            "BEDS_DATABASES__REC__DATABASE": DATABASE,
            **{f"BEDS_DATABASES__REL__{k}": v for k, v in rel.items()},
            "BEDS_DATABASES__REL__USER": "beds_broker",
            "BEDS_DATABASES__REL__PASSWORD": self.passwords["rel_broker"],
            "BEDS_METRICS__PROMETHEUS": f"127.0.0.1:{self.base + 464}",
            "BEDS_HTTP__LISTEN": f"127.0.0.1:{self.base + 80}",
            "BEDS_HTTP__ADMIN": f"127.0.0.1:{self.base + 81}",
            "BEDS_SCHEMA__DBA__REC__URI": self.mongo_uri("dba"),
            "BEDS_SCHEMA__DBA__REC__DATABASE": DATABASE,
            **{f"BEDS_SCHEMA__DBA__REL__{k}": v for k, v in rel.items()},
            "BEDS_SCHEMA__DBA__REL__USER": "beds_dba",
            "BEDS_SCHEMA__DBA__REL__PASSWORD": self.passwords["rel_dba"],
        }

    @property
    def flower_port(self) -> int:
        return 5555 if self.base == DEFAULT_BASE else self.base + 555

    def flower_environment(self) -> dict[str, str]:
        """Variables that let Flower's broker page show the queues, behind a password."""
        return {
            "FLOWER_BROKER_API": self.alone._management,  # Flower takes one
            # Without a password any web page in a browser could shut a pool down through Flower.
            "FLOWER_BASIC_AUTH": f"beds:{self.passwords['flower']}",
            "FLOWER_UNAUTHENTICATED_API": "0",
            "FLOWER_PORT": str(self.flower_port),
        }

    @property
    def _management(self) -> str:
        hosts = ",".join(self._hosts(lambda each: each.management_port))
        return f"http://beds_admin:{quote(self.passwords['amqp_admin'])}@{hosts}/api/"

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)  # RabbitMQ and the databases write files that other users could read
        data = {key: value for key, value in asdict(self).items() if key not in ("folder", "number")}
        _write_private(self.folder / "stack.json", json.dumps(data, indent=1))
        _write_private(self.env_file, "".join(f"{k}={v}\n" for k, v in self.environment().items()))


def lacks_users(folder: Path) -> bool:
    """True if an earlier version, which had fewer users, created the stack under `folder`."""
    try:
        return bool(set(USERS) - set(json.loads((folder / "stack.json").read_text())["passwords"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_plan(folder: Path, base: int | None = None) -> Plan:
    """The plan of the stack under `folder`; a new one with new passwords if there is none.

    Args:
        folder: `.beds` beside beds.toml.
        base: first port; by default that of the existing plan, or `DEFAULT_BASE`.

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
        passwords = {
            user: str(data["passwords"][user]) for user in USERS if user not in _LATER or user in data["passwords"]
        }
        # A stack of an earlier version lacks these users. RabbitMQ gets them at the next `beds stack up`.
        passwords |= {user: secrets.token_urlsafe(18) for user in _LATER if user not in passwords}
        plan = Plan(folder, int(data["base"]), passwords, is_cluster=bool(data.get("is_cluster")))
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
