"""The sections of beds.toml. Every default, unit and limit of the configuration stands here."""

from __future__ import annotations

import socket
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

BrokerName = Literal[
    "rec.read", "rec.write", "rel.read", "rel.write", "job.aggregate", "job.migrate", "job.warehouse", "calgon", "admin"
]
BROKER_NAMES: tuple[str, ...] = get_args(BrokerName)


def _url_of(*schemes: str) -> AfterValidator:
    """Refuses what is no URL of these schemes. It holds a password, so the words of the refusal never repeat it."""
    forms = " or ".join(f"{scheme}://user:password@host:port/…" for scheme in schemes)

    def check(url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        try:
            parts = urlsplit(text)
            # MongoDB takes several hosts, "a:1,b:2", which have no single port. Several URLs would be taken for one.
            has_port = "," in parts.netloc or parts.port != 0
            valid = text.count("://") == 1 and parts.scheme in schemes and parts.netloc and has_port
        except ValueError:  # a port or an IPv6 address that is none
            valid = False
        if not valid:
            raise ValueError(f"not a URL of the form {forms}; `/`, `@`, `:` and `%` in a password are written as %XX")
        return url

    return AfterValidator(check)


Text = Annotated[str, Field(pattern=r"^[^\x00]+$")]
"""A name as a driver takes it: no NUL."""
AmqpUrl = Annotated[SecretStr, _url_of("amqp", "amqps")]
MongoUri = Annotated[SecretStr, _url_of("mongodb", "mongodb+srv")]


ROOT: ContextVar[Path] = ContextVar("ROOT", default=Path())
"""The folder of the beds.toml that is being read; relative paths of files start there."""


def _existing(file: Path) -> Path:
    found = ROOT.get() / file
    try:
        found.open("rb").close()
    except OSError as error:
        raise ValueError(f"{found} cannot be read: {error.strerror}") from None
    return found


ReadableFile = Annotated[Path, AfterValidator(_existing)]


class Section(BaseModel):
    """Base of all sections: an unknown key is an error, a secret never shows in one."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _with_host(name: Any) -> Any:
    """Containers of one image share their beds.toml, and each needs a name of its own."""
    return name.replace("{host}", socket.gethostname().split(".")[0]) if isinstance(name, str) else name


class Node(Section):
    name: Annotated[str, BeforeValidator(_with_host), Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "ms"
    """First part of every event id: letters, digits, `_` and `-`, at most 32. `{host}` in it is the machine's name."""
    environment: Annotated[str, Field(pattern=r"^[a-z]{1,16}$")] = "development"
    """`development`, `production`, or a word of your own; a failed check is fatal in `production` only."""

    @property
    def is_production(self) -> bool:
        return self.environment == "production"


class Tls(Section):
    """TLS to one server. The server's name is always checked against its certificate."""

    ca: ReadableFile | None = None
    """PEM file of the authorities to trust; those of the machine when absent."""
    certificate: ReadableFile | None = None
    """PEM file of the client's own certificate, where the server asks for one. For MongoDB with its key in it."""
    key: ReadableFile | None = None
    """PEM file of the certificate's key, when it lies in another file."""

    def named(self, ca: str, certificate: str, key: str = "key") -> dict[str, str]:
        """The paths of those files that are set, under the names that a driver has for them."""
        files = {ca: self.ca, certificate: self.certificate, key: self.key}
        return {name: str(file) for name, file in files.items() if file}

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> Tls:
        if self.key and not self.certificate:
            raise ValueError("key is of no use without certificate")
        return self


class Amqp(Section):
    url: AmqpUrl = SecretStr("amqp://guest:guest@127.0.0.1:5672//")
    """Where clients publish. Its user needs no configure right."""
    worker_url: AmqpUrl | None = None
    """Where workers consume and declare the topology; `url` when absent."""
    tls: Tls | None = None
    """For URLs that begin with `amqps://`."""
    queue_type: Literal["quorum", "classic"] = "quorum"
    delivery_limit: Annotated[int, Field(ge=1, le=100)] = 5
    """Deliveries of one message before it goes to beds.dead (quorum queues only)."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=128 * 1024 * 1024)] = 1024 * 1024
    """The largest body of an event or a reply, in bytes."""
    heartbeat: Annotated[int, Field(ge=1, le=300)] = 10
    """Seconds; a silent peer is given up after two of them."""
    connect_timeout: Annotated[float, Field(gt=0, le=60)] = 4.0
    """Seconds for one attempt to connect."""
    consumer_timeout: Annotated[int, Field(ge=60)] = 1800
    """Seconds after which RabbitMQ takes an event from a worker that has not acknowledged it (`consumer_timeout` of
    rabbitmq.conf). A pool's time limit must lie below, or the whole worker would end."""
    max_queue_length: Annotated[int, Field(ge=0)] = 0
    """Events that may wait in one queue; more are refused with Overloaded. No limit when 0."""

    @model_validator(mode="after")
    def _tls_over_amqps(self) -> Amqp:
        if self.tls and not all(url.startswith("amqps://") for url in (self.client_url, self.broker_url)):
            raise ValueError("with [amqp.tls], url and worker_url begin with amqps://")
        return self

    @property
    def client_url(self) -> str:
        return self.url.get_secret_value()

    @property
    def broker_url(self) -> str:
        return (self.worker_url or self.url).get_secret_value()


class Service(Section):
    is_local: bool = False


class Services(Section):
    app_server: Service = Service()
    rec: Service = Service()
    rel: Service = Service()
    jobs: Service = Service()
    admin: Service = Service()
    calgon: Service | None = None
    """Tickets; where `rec` is local when absent, since they lie in MongoDB."""
    flower: Service = Service()


class Broker(Section):
    """One pool. These numbers are the throttle of the system."""

    instances: Annotated[int, Field(ge=1, le=512)] = 2
    """Slots: how many events the pool carries out at once."""
    prefetch: Annotated[int, Field(ge=1, le=1000)] = 1
    """Events a slot holds in advance. 1 is fair; more is faster for short operations."""
    pool: Literal["prefork", "threads", "solo"] = "prefork"
    time_limit: Annotated[int, Field(ge=2, le=86_400)] = 30
    """Seconds after which the slot is killed; stays below `[amqp] consumer_timeout`."""
    soft_time_limit: Annotated[int | None, Field(ge=1, le=86_399)] = None
    """Seconds after which the operation is ended with TimeLimitExceeded; 80 % of `time_limit` when absent."""
    max_tasks_per_child: Annotated[int | None, Field(ge=1)] = None
    max_memory_per_child: Annotated[int | None, Field(ge=10_000)] = None
    """KiB."""

    @model_validator(mode="after")
    def _soft_below_hard(self) -> Broker:
        if self.soft_time_limit is not None and self.soft_time_limit >= self.time_limit:
            raise ValueError("soft_time_limit must be below time_limit")
        return self

    @property
    def soft_limit(self) -> int:
        """Seconds."""
        return self.soft_time_limit or max(1, int(self.time_limit * 0.8))


class RecDatabase(Section):
    uri: MongoUri
    database: Text = "beds"
    tls: Tls | None = None
    connect_timeout: Annotated[float, Field(gt=0, le=60)] = 3.0
    """Seconds to find a server."""

    @model_validator(mode="after")
    def _one_file_for_both(self) -> RecDatabase:
        if self.tls and self.tls.key:
            raise ValueError("MongoDB's driver reads the key from the file of the certificate: append it there")
        return self


class RelDatabase(Section):
    host: Text = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 3306
    database: Text = "beds"
    user: Text = "beds_broker"
    password: SecretStr = SecretStr("")
    tls: Tls | None = None
    connect_timeout: Annotated[float, Field(gt=0, le=60)] = 3.0
    """Seconds for one attempt to connect."""


class Databases(Section):
    rec: RecDatabase | None = None
    rel: RelDatabase | None = None


class Retry(Section):
    """How long a worker tries a transient database error again before it answers StoreUnavailable."""

    deadline: Annotated[float, Field(ge=0, le=300)] = 5.0
    """Seconds."""
    first_delay: Annotated[float, Field(gt=0, le=10)] = 0.05
    """Seconds; doubled each time, with jitter."""


class Ledger(Section):
    """What makes an event's effect happen once."""

    ttl: Annotated[int, Field(ge=3600, le=31_536_000)] = 604_800
    """Seconds an entry is kept: longer than any event may wait to be delivered again, or replayed."""


class Calgon(Section):
    result_ttl: Annotated[int, Field(ge=60)] = 86_400
    """Seconds an outcome is kept."""


class Logging(Section):
    """Log records and lineage, on their way to the admin worker."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Of the workers' own output, and the lowest that is sent to msLogs."""
    ttl_days: Annotated[int, Field(ge=1, le=36_500)] = 30
    """Days that the admin worker keeps logs, lineage and audit."""
    lineage: bool = True
    """Whether workers tell what they carried out, and for how long."""
    batch_records: Annotated[int, Field(ge=1, le=5000)] = 1000
    """Records in one message, at most."""
    batch_seconds: Annotated[float, Field(gt=0, le=60)] = 0.2
    """Seconds a record waits for others."""
    buffer_records: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """Records a process holds while RabbitMQ takes none; beyond that the lowest level is dropped, and counted."""


class Metrics(Section):
    interval: Annotated[float, Field(ge=0.1, le=3600)] = 5.0
    """Seconds between two flushes of a process."""
    prometheus: Annotated[str, Field(pattern=r"^$|^[^:\s]+:\d{1,5}$")] = ""
    """`host:port` of the Prometheus endpoint of this node's admin worker; none when empty."""


class Flower(Section):
    """The monitor, where the service `flower` is local."""

    address: Text = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 5555
    basic_auth: SecretStr = SecretStr("")
    """`user:password`, several with commas; needed on any address but loopback."""
    broker_api: SecretStr = SecretStr("")
    """RabbitMQ's management API with a user that has the tag `monitoring`: http://user:password@host:15672/api/"""

    @model_validator(mode="after")
    def _no_open_door(self) -> Flower:
        if self.address not in ("127.0.0.1", "::1", "localhost") and not self.basic_auth.get_secret_value():
            raise ValueError("basic_auth is needed where Flower listens on another address than loopback")
        return self


class Schema(Section):
    path: Path = Path("schema")
    """Relative to the folder of beds.toml."""
    refresh: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Seconds a worker keeps what it read of the named objects' signatures."""
    broker_host: str = "127.0.0.1"
    """The host part of the brokers' MariaDB account, to which `beds schema apply` grants."""
    dba: Databases = Databases()
    """The DBA's own credentials: for `beds schema`, never for a worker."""
