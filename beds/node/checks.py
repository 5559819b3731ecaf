"""The start-up checks of a node. In production any failure is fatal."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from beds.config import Settings
from beds.config.http import host_and_port
from beds.domain.event import Store
from beds.domain.member import Members
from beds.errors import BedsError, ConfigurationError
from beds.node.amqp_checks import amqp_checks
from beds.node.check import Check, failed, of_error, ok, skipped
from beds.node.members import rabbitmq_members, store_members
from beds.services.factory import AdapterFactory
from beds.services.members import SERVERS
from beds.templates.registry import TemplateRegistry
from beds.templates.roles import check_roles
from beds.wire.routes import brokers_of, local_pools

SKEW_SECONDS = 5.0
"""Allowed difference of two clocks. The times of logs, tickets and audits come from the nodes' own clocks."""
FREE_DISK_BYTES = 200_000_000
BYTES_PER_SLOT = 30 * 1024 * 1024
"""Memory of a slot's process that it does not share with its parent."""


def startup_checks(settings: Settings, *, runs_here: bool = False) -> Iterator[Check]:
    """All checks of this node, one after another.

    Args:
        settings: valid ones; reading them is the first check.
        runs_here: whether this node's own supervisor runs already.
    """
    node = settings.node
    local = [name for name, service in settings.services if service and service.is_local]
    yield ok("configuration", f"node {node.name}, {node.environment}; local: {', '.join(local) or 'nothing'}")
    yield _secrets(settings)
    yield _disk(settings)
    yield _memory(settings, runs_here)
    if settings.services.app_server.is_local:
        yield from _http(settings, runs_here)
    if settings.services.flower.is_local:
        yield _flower(settings, runs_here)
    if settings.services.admin.is_local and settings.metrics.prometheus:
        host, _, port = settings.metrics.prometheus.rpartition(":")
        yield _port("metrics", host, int(port), runs_here, "[metrics] prometheus")
    yield from amqp_checks(settings, runs_here=runs_here)
    yield from rabbitmq_members(settings)
    yield from _stores(settings)


def _secrets(settings: Settings) -> Check:
    """Check that passwords are set, and that no other user of this machine can read them."""
    urls = (settings.amqp.client_url, settings.amqp.broker_url)
    if settings.node.is_production and any("guest:guest@" in url for url in urls):
        return failed("secrets", "RabbitMQ's default user guest in production", "set BEDS_AMQP__URL and …__WORKER_URL")
    for file in _secret_files(settings):
        if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
            return failed("secrets", f"{file} can be read by others", f"chmod 600 {file}")
    rel = settings.databases.rel
    if settings.services.rel.is_local and rel and not rel.password.get_secret_value():
        return failed("secrets", f"no password for MariaDB's user {rel.user}", "set BEDS_DATABASES__REL__PASSWORD")
    return ok("secrets", "are set, and are this user's alone")


def _secret_files(settings: Settings) -> Iterator[Path]:
    named = [settings.env_file, settings.file if _holds_a_secret(settings) else None]
    for part in (settings.amqp, settings.databases.rec, settings.databases.rel):
        if part and part.tls:
            named.append(part.tls.key or part.tls.certificate)
    for file in named:
        if file and (found := settings.root / file).is_file():
            yield found


def _holds_a_secret(settings: Settings) -> bool:
    """True if beds.toml itself contains a password."""
    rel, rec, flower = settings.databases.rel, settings.databases.rec, settings.flower
    urls = (settings.amqp.client_url, settings.amqp.broker_url, rec and rec.uri.get_secret_value())
    secrets = [urlsplit(url).password for url in urls if url]
    secrets += [
        part.get_secret_value() for part in (rel and rel.password, flower.basic_auth, flower.broker_api) if part
    ]
    text = settings.file.read_text(errors="replace") if settings.file.is_file() else ""
    return any(secret and secret in text for secret in secrets)


def _disk(settings: Settings) -> Check:
    free = shutil.disk_usage(settings.root).free
    if free < FREE_DISK_BYTES:
        return failed("disk", f"{free / 1e6:,.0f} MB are free at {settings.root}", "free some space: logs need it")
    return ok("disk", f"{free / 1e9:,.1f} GB are free")


def _memory(settings: Settings, runs_here: bool) -> Check:
    brokers = [broker for pool in local_pools(settings.services) for broker in brokers_of(pool, settings)]
    slots = sum(broker.instances for broker in brokers if broker.pool == "slots")
    available = psutil.virtual_memory().available
    if not runs_here and slots * BYTES_PER_SLOT > available:
        return failed(
            "memory",
            f"{slots} slots need about {slots * BYTES_PER_SLOT / 1e6:,.0f} MB, {available / 1e6:,.0f} MB are available",
            "lower instances in [brokers], or give the machine more",
        )
    return ok("memory", f"{available / 1e6:,.0f} MB are available for {slots} slots")


def _http(settings: Settings, runs_here: bool) -> Iterator[Check]:
    """Check the app server: its packages, its callers, its ports, and that it has nothing of a database."""
    http = settings.http
    if missing := [
        name
        for name in ("starlette", "uvicorn", "uvloop", "httptools", "msgspec", "jwt", "jinja2")
        if importlib.util.find_spec(name) is None
    ]:
        yield failed("http", f"{missing[0]} is not installed", "pip install 'beds[http]'")
        return
    if http.is_open_to_nobody and (settings.node.is_production or not http.is_on_loopback):
        yield failed("http callers", "nobody may call: there is no [[http.key]] and no [[http.jwt]]",
                     "`beds http key NAME` makes a key")  # fmt: skip
    else:
        callers = "a key of its own" if http.is_open_to_nobody else f"{len(http.key)} keys, {len(http.jwt)} issuers"
        yield ok("http callers", callers)
    if settings.schema_path.is_dir():  # else the check of the templates fails
        try:
            check_roles(http, TemplateRegistry.from_folder(settings.schema_path, strict=False))
        except ConfigurationError as error:
            yield of_error("http roles", error)
    if not http.is_on_loopback and http.tls_certificate is None and not http.trusted_proxies:
        yield failed("http encryption", f"{http.listen} takes keys and tokens in the clear",
                     "set [http] tls_certificate and tls_key, or name the proxy in trusted_proxies")  # fmt: skip
    if not local_pools(settings.services) and (settings.databases.rec or settings.databases.rel):
        yield failed("http rights", "this node runs no worker, and knows the address of a database",
                     "remove [databases] from its beds.toml and BEDS_DATABASES__… from its environment")  # fmt: skip
    for name, address, key in (("http", http.listen, "listen"), ("http admin", http.admin, "admin")):
        if address:
            host, port = host_and_port(address)
            yield _port(name, host, port, runs_here, f"[http] {key}")


def _flower(settings: Settings, runs_here: bool) -> Check:
    if importlib.util.find_spec("flower") is None:
        return failed("flower", "it is not installed", "pip install 'beds[ops]'")
    if not settings.flower.basic_auth.get_secret_value():
        return failed("flower", "it has no password, and is not started", "set BEDS_FLOWER__BASIC_AUTH=user:password")
    return _port("flower", settings.flower.address, settings.flower.port, runs_here, "[flower] port")


def _port(name: str, host: str, port: int, runs_here: bool, key: str) -> Check:
    """Check that a port is free on which this node will listen."""
    if runs_here:
        return ok(name, f"{host}:{port}")
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        return failed(name, f"{host}:{port}: {error.strerror or error}", f"choose another in {key}")
    return ok(name, f"{host}:{port} is free")


def _stores(settings: Settings) -> Iterator[Check]:
    """Check the databases of the local services."""
    pools = local_pools(settings.services)
    # Every worker updates tickets. MongoDB holds them, like all of BEDS's own data.
    needed = ({Store.REC} if pools else set()) | ({Store.REL} if settings.services.rel.is_local else set())
    if settings.services.jobs.is_local and settings.databases.rel is not None:
        needed.add(Store.REL)
    try:
        registry = TemplateRegistry.from_folder(settings.schema_path, strict=False)
    except BedsError as error:
        yield of_error("templates", error)
        return
    for problem in registry.broken:
        yield of_error("templates", problem)
    if settings.services.jobs.is_local:
        yield _jobs(settings, registry)
    with contextlib.closing(AdapterFactory(settings, registry)) as factory:
        for store in Store:
            if store in needed:
                yield from _store(settings, factory, store)
            else:
                yield skipped(SERVERS[store], "no service of this node uses it")


def _jobs(settings: Settings, registry: TemplateRegistry) -> Check:
    """Check that this node can write the files of each rule that has some."""
    for rule in registry.jobs.values():
        name = rule.job.cold
        if not name:
            continue
        if name not in settings.cold:
            return failed("jobs", f"{rule.file.name} writes to {name!r}, which beds.toml does not have",
                          f'add [cold.{name}] url = "file:///…"')  # fmt: skip
        if importlib.util.find_spec("pyarrow") is None or importlib.util.find_spec("fsspec") is None:
            return failed("jobs", f"{rule.file.name} writes files, and pyarrow or fsspec is not installed",
                          "pip install 'beds[cold]'")  # fmt: skip
    return ok("jobs", f"{len(registry.jobs)} rules")


def _place(settings: Settings, store: Store) -> str:
    """The address of a store's server, without user and password."""
    rel, rec = settings.databases.rel, settings.databases.rec
    if store is Store.REL and rel:
        return rel.where
    return urlsplit(rec.uri.get_secret_value()).netloc.rpartition("@")[2] if rec else "no server is named"


def _store(settings: Settings, factory: AdapterFactory, store: Store) -> Iterator[Check]:
    server = SERVERS[store]
    asked = datetime.now(UTC)
    try:
        health = factory.examine(store)
        replied = datetime.now(UTC)
    except BedsError as error:
        remedy = f"start it, or mend [databases.{store}]"
        yield failed(server, f"{error.message} ({_place(settings, store)})", remedy)
        return
    yield ok(server, f"answered in {(replied - asked) / timedelta(milliseconds=1):.0f} ms")
    # A server time within the round trip counts as no difference.
    skew = max((asked - health.clock).total_seconds(), (health.clock - replied).total_seconds(), 0.0)
    if skew > SKEW_SECONDS:
        yield failed(f"clock against {server}", f"they differ by {skew:,.0f} s", "let both run NTP (chrony)")
    else:
        yield ok(f"clock against {server}", f"within {SKEW_SECONDS:.0f} s")
    if health.read_only:
        yield failed(f"{server} writes", "the server takes none: it is a replica, or was made read-only",
                     f"start the primary, or promote a replica; [databases.{store}] names both")  # fmt: skip
    yield from store_members(Members(server, health.members, lag=health.lag))
    if not health.transactions:
        yield failed(f"{server} transactions", "it is no replica set, and has none",
                     "start mongod with --replSet, and rs.initiate() once; one member is enough")  # fmt: skip
    if health.surplus:
        yield failed(f"{server} rights", f"the brokers' user has more than it needs: {'; '.join(health.surplus)}",
                     "revoke it; `beds schema grants` prints what is needed")  # fmt: skip
    else:
        yield ok(f"{server} rights", "named objects and collections, and no more")
    yield from _templates(factory, store)


def _templates(factory: AdapterFactory, store: Store) -> Iterator[Check]:
    found = 0
    for name, template in factory.registry.items():
        if template.store != store:
            continue
        try:
            problems: list[BedsError] = list(factory.adapter(name).check_bindings())
        except BedsError as error:
            problems = [error]
        found += not problems
        for problem in problems:
            yield failed(f"template {name}", problem.message, problem.hint or "`beds schema diff`, then `apply`")
        if loose := [] if problems else factory.adapter(name).objects_not_strict():
            yield failed(f"template {name}", f"cut what does not fit, made without strict mode: {', '.join(loose)}",
                         "make it anew under STRICT_ALL_TABLES: `beds schema apply` does")  # fmt: skip
    yield ok(f"{SERVERS[store]} templates", f"{found} fit the named objects")
