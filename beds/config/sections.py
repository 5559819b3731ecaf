"""The sections of beds.toml, with every default, unit and limit of the configuration."""

from __future__ import annotations

import socket
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from beds.config.hosts import check_amqp, check_hosts, each_host

BrokerName = Literal[
    "rec.read", "rec.write", "rel.read", "rel.write", "job.aggregate", "job.migrate", "job.warehouse", "calgon", "admin"
]
BROKER_NAMES: tuple[str, ...] = get_args(BrokerName)


def _url_of(*schemes: str) -> AfterValidator:
    """A validator for URLs of these schemes. Its error never repeats the URL, which holds a password."""
    forms = " or ".join(f"{scheme}://user:password@host:port/…" for scheme in schemes)

    def check(url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        try:
            parts = urlsplit(text)
            # Several hosts, "a:1,b:2", have no single port. Several joined URLs are refused.
            has_port = "," in parts.netloc or parts.port != 0
            valid = text.count("://") == 1 and parts.scheme in schemes and parts.netloc and has_port
        except ValueError:  # an invalid port or IPv6 address
            valid = False
        if not valid:
            raise ValueError(f"not a URL of the form {forms}; `/`, `@`, `:` and `%` in a password are written as %XX")
        return url

    return AfterValidator(check)


Text = Annotated[str, Field(pattern=r"^[^\x00]+$")]
"""A non-empty name without NUL, which drivers refuse."""


def _amqp_url(url: SecretStr) -> SecretStr:
    check_amqp(url.get_secret_value())
    return url


AmqpUrl = Annotated[SecretStr, AfterValidator(_amqp_url)]
MongoUri = Annotated[SecretStr, _url_of("mongodb", "mongodb+srv")]


ROOT: ContextVar[Path] = ContextVar("ROOT", default=Path())
"""The folder of the beds.toml that is being read; relative paths start there."""


def _existing(file: Path) -> Path:
    found = ROOT.get() / file
    try:
        found.open("rb").close()
    except OSError as error:
        raise ValueError(f"{found} cannot be read: {error.strerror}") from None
    return found


ReadableFile = Annotated[Path, AfterValidator(_existing)]


class Section(BaseModel):
    """Base of all sections: an unknown key is an error, and errors show no values."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _with_host(name: Any) -> Any:
    """Replace `{host}`: containers of one image share a beds.toml, and each needs its own name."""
    return name.replace("{host}", socket.gethostname().split(".")[0]) if isinstance(name, str) else name


class Node(Section):
    name: Annotated[str, BeforeValidator(_with_host), Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "ms"
    """First part of every event id: letters, digits, `_` and `-`, at most 32. `{host}` in it is the machine's name."""
    environment: Annotated[str, Field(pattern=r"^[a-z]{1,16}$")] = "development"
    """`development`, `production`, or any other word; a failed check is fatal only in `production`."""

    @property
    def is_production(self) -> bool:
        return self.environment == "production"


class Tls(Section):
    """TLS to one server. The server's name is always checked against its certificate."""

    ca: ReadableFile | None = None
    """PEM file of the trusted certificate authorities; those of the machine when absent."""
    certificate: ReadableFile | None = None
    """PEM file of the client's certificate, if the server requires one. For MongoDB it also holds the key."""
    key: ReadableFile | None = None
    """PEM file of the certificate's key, if it is a separate file."""

    def named(self, ca: str, certificate: str, key: str = "key") -> dict[str, str]:
        """The paths of the files that are set, under a driver's names for them."""
        files = {ca: self.ca, certificate: self.certificate, key: self.key}
        return {name: str(file) for name, file in files.items() if file}

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> Tls:
        if self.key and not self.certificate:
            raise ValueError("key is of no use without certificate")
        return self


QueueType = Literal["quorum", "classic"]


class Amqp(Section):
    url: AmqpUrl = SecretStr("amqp://guest:guest@127.0.0.1:5672//")
    """For clients, which publish. Its user needs no configure right. Each of these addresses may name the hosts of a
    cluster: `amqp://user:password@a:5672,b:5672/vhost`."""
    worker_url: AmqpUrl | None = None
    """For workers, which consume and declare the topology; `url` when absent."""
    operator_url: AmqpUrl | None = None
    """For an operator's commands (`beds dead`, `logs`, `top`, `tickets`). Its user may publish with the key `operator`,
    and so read and change the tickets and records of all users. Omit it on nodes without operators."""
    http_url: AmqpUrl | None = None
    """For the app server of this node; `url` when absent. A user of its own may also start jobs, for example."""
    tls: Tls | None = None
    """For URLs that begin with `amqps://`."""
    queue_type: QueueType = "quorum"
    queue_types: dict[Literal["rec.read", "rel.read"], QueueType] = {}
    """Queues of reads that differ from `queue_type`. A classic queue keeps called reads in memory, on one node of a
    cluster, and counts no deliveries."""
    delivery_limit: Annotated[int, Field(ge=1, le=100)] = 5
    """Deliveries of one message before it goes to beds.dead (quorum queues only)."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=128 * 1024 * 1024)] = 1024 * 1024
    """The largest body of an event or a reply, in bytes."""
    heartbeat: Annotated[int, Field(ge=1, le=300)] | None = None
    """Seconds; a connection is closed after two heartbeats without data. When absent, 10, and 3 for an address of
    several hosts, where another one can take over."""
    connect_timeout: Annotated[float, Field(gt=0, le=60)] = 4.0
    """Seconds for one attempt to connect."""
    consumer_timeout: Annotated[int, Field(ge=60)] = 1800
    """Seconds after which RabbitMQ requeues an event that its worker has not acknowledged (`consumer_timeout` of
    rabbitmq.conf). A pool's time limit must be lower: RabbitMQ closes the channel, and the whole worker ends."""
    max_queue_length: Annotated[int, Field(ge=0)] = 0
    """Events that may wait in one queue; further ones are refused with Overloaded. No limit when 0."""

    @model_validator(mode="after")
    def _tls_over_amqps(self) -> Amqp:
        if self.tls and not all(url.startswith("amqps://") for url in (self.client_url, self.broker_url)):
            raise ValueError("with [amqp.tls], url and worker_url begin with amqps://")
        return self

    def type_of(self, queue: str) -> QueueType:
        """The type of a queue, by its name."""
        return {str(name): kind for name, kind in self.queue_types.items()}.get(queue, self.queue_type)

    @property
    def heartbeat_seconds(self) -> int:
        """Seconds of the heartbeat."""
        return self.heartbeat or (10 if len(each_host(self.broker_url)) == 1 else 3)

    @property
    def client_url(self) -> str:
        return self.url.get_secret_value()

    @property
    def broker_url(self) -> str:
        return (self.worker_url or self.url).get_secret_value()

    @property
    def workers(self) -> str:
        """The workers' AMQP user."""
        return unquote(urlsplit(self.broker_url).username or "guest")


class Service(Section):
    is_local: bool = False


class Services(Section):
    app_server: Service = Service()
    rec: Service = Service()
    rel: Service = Service()
    jobs: Service = Service()
    admin: Service = Service()
    calgon: Service | None = None
    """Tickets; as `rec` when absent, because tickets are stored in MongoDB."""
    flower: Service = Service()


class Broker(Section):
    """One pool. These numbers limit the load on the databases."""

    instances: Annotated[int, Field(ge=1, le=512)] = 2
    """Slots: the number of events that the pool executes at once."""
    prefetch: Annotated[int, Field(ge=1, le=1000)] = 1
    """Events prefetched per slot. 1 distributes fairly; more is faster for short operations."""
    pool: Literal["slots", "threads", "solo"] = "slots"
    """`slots` are processes that consume the queue themselves; the records' pool, `admin`, has `threads` or `solo`."""
    time_limit: Annotated[int, Field(ge=2, le=86_400)] = 30
    """Seconds after which the slot is killed; must be below 90 % of `[amqp] consumer_timeout`."""
    soft_time_limit: Annotated[int | None, Field(ge=1, le=86_399)] = None
    """Seconds after which the operation ends with TimeLimitExceeded; 80 % of `time_limit` when absent."""
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


class ReplicaReads(Section):
    """How application reads use replicas."""

    max_lag: Annotated[float, Field(ge=0.1, le=3600)] = 5.0
    """Seconds of writes that a replica may miss. One that may miss more is not read: the primary is."""
    own_writes: bool = False
    """Whether each read sees all writes that ended before it. This costs a short query to the primary for each read."""


_LOOSE_TLS = ("tlsinsecure", "tlsallowinvalidcertificates", "tlsallowinvalidhostnames", "tlsdisableocspendpointcheck")
"""Options of a MongoDB URI that disable TLS checks."""


class RecDatabase(Section):
    uri: MongoUri
    database: Text = "beds"
    tls: Tls | None = None
    connect_timeout: Annotated[float, Field(gt=0, le=60)] = 3.0
    """Seconds to find a server."""
    read_preference: Literal["primary", "secondaryPreferred"] = "primary"
    """Where fetches of applications go. Tickets, ledger, stored commands and jobs always use the primary."""
    read: ReplicaReads = ReplicaReads()

    @model_validator(mode="after")
    def _tls_is_not_undone(self) -> RecDatabase:
        options = {
            name.lower(): value.lower() for name, value in parse_qsl(urlsplit(self.uri.get_secret_value()).query)
        }
        off = [name for name in ("tls", "ssl") if options.get(name, "true") != "true"] if self.tls else []
        loose = [n for n in options if n in _LOOSE_TLS and options[n] != "false"]
        if off or loose:
            raise ValueError(f"uri: the option {(off + loose)[0]} would undo TLS or its checks; leave it out")
        return self

    @model_validator(mode="after")
    def _reads_somewhere(self) -> RecDatabase:
        if "read" in self.model_fields_set and self.read_preference == "primary":
            raise ValueError('[databases.rec.read] is of no use without read_preference = "secondaryPreferred"')
        return self

    @model_validator(mode="after")
    def _one_file_for_both(self) -> RecDatabase:
        if self.tls and self.tls.key:
            raise ValueError("MongoDB's driver reads the key from the file of the certificate: append it there")
        return self


def _hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    check_hosts(list(hosts), 3306)
    return hosts


class RelReplicas(ReplicaReads):
    hosts: Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(_hosts)]
    """Replicas, `["b:3306", "c:3306"]`, with the user, password, database and TLS of `[databases.rel]`."""


class RelDatabase(Section):
    host: Text = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 3306
    hosts: Annotated[tuple[Text, ...], AfterValidator(_hosts)] = ()
    """A primary and its candidates, `["a:3306", "b:3306"]`, before `host`; the one that takes writes is used."""
    database: Text = "beds"
    user: Text = "beds_broker"
    password: SecretStr = SecretStr("")
    tls: Tls | None = None
    connect_timeout: Annotated[float, Field(gt=0, le=60)] = 3.0
    """Seconds for one attempt to connect."""
    read: RelReplicas | None = None
    """Replicas for the fetches of applications. Jobs and the ledger always use the primary."""

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each server."""
        parts = [urlsplit(f"//{each}") for each in self.hosts]
        return [(str(part.hostname), part.port or self.port) for part in parts] or [(self.host, self.port)]

    @property
    def where(self) -> str:
        """All servers, for messages."""
        return ",".join(f"{host}:{port}" for host, port in self.addresses)


class Databases(Section):
    rec: RecDatabase | None = None
    rel: RelDatabase | None = None


def _storage_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("a URL without user and password; put these into [cold.<name>.options]")
    if not (parts.path or parts.netloc):
        raise ValueError("names no folder: file:///var/archive, s3://bucket/folder, or a folder beside beds.toml")
    return url.rstrip("/")


class Cold(Section):
    """A place for the warehouse's files."""

    url: Annotated[Text, AfterValidator(_storage_url)]
    """A folder, absolute or relative to beds.toml, or a URL that fsspec knows: `s3://bucket/folder`."""
    options: dict[str, SecretStr] = {}
    """Options of fsspec's file system, such as `key`, `secret` and `endpoint_url` of s3fs."""


class Retry(Section):
    """How long a worker retries after a transient database error before it replies StoreUnavailable."""

    deadline: Annotated[float, Field(ge=0, le=300)] = 5.0
    """Seconds."""
    first_delay: Annotated[float, Field(gt=0, le=10)] = 0.05
    """Seconds; doubled each time, with jitter."""


class Ledger(Section):
    """The idempotency records of writes."""

    ttl: Annotated[int, Field(ge=3600, le=31_536_000)] = 604_800
    """Seconds an entry is kept; must be longer than any event may wait for a redelivery or a replay."""


class Calgon(Section):
    result_ttl: Annotated[int, Field(ge=60)] = 86_400
    """Seconds an outcome is kept."""


class Logging(Section):
    """Log records and lineage that are sent to the admin worker."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The lowest level in the workers' own output and in msLogs."""
    ttl_days: Annotated[int, Field(ge=1, le=36_500)] = 30
    """Days that logs, lineage, audit and dead events are kept."""
    lineage: bool = True
    """Whether workers record the events they execute, and their durations."""
    batch_records: Annotated[int, Field(ge=1, le=5000)] = 1000
    """Records in one message, at most."""
    batch_seconds: Annotated[float, Field(gt=0, le=60)] = 0.2
    """Seconds a record waits for others."""
    buffer_records: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """Records that a process buffers while RabbitMQ is away; beyond it, those of the lowest level are dropped."""


class Metrics(Section):
    interval: Annotated[float, Field(ge=0.1, le=3600)] = 5.0
    """Seconds between two flushes of a process."""
    prometheus: Annotated[str, Field(pattern=r"^$|^[^:\s]+:\d{1,5}$")] = ""
    """`host:port` of the Prometheus endpoint of this node's admin worker; none when empty."""


class Flower(Section):
    """The monitor Flower, which runs where the service `flower` is local."""

    address: Text = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 5555
    basic_auth: SecretStr = SecretStr("")
    """`user:password`, several with commas. Flower does not start without it."""
    broker_api: SecretStr = SecretStr("")
    """RabbitMQ's management API with a user that has the tag `monitoring`: http://user:password@host:15672/api/.
    Of several hosts, `a:15672,b:15672`, Flower uses the first."""

    @property
    def environment(self) -> dict[str, str]:
        """Flower's environment. Other users of the machine can read a command line, but not the environment."""
        secrets = {"FLOWER_BASIC_AUTH": self.basic_auth, "FLOWER_BROKER_API": self.broker_api}
        found = {name: value.get_secret_value() for name, value in secrets.items() if value.get_secret_value()}
        if (api := found.get("FLOWER_BROKER_API")) is not None:
            found["FLOWER_BROKER_API"] = each_host(api)[0]  # Flower takes one
        return {**found, "FLOWER_UNAUTHENTICATED_API": "0"}


class Schema(Section):
    path: Path = Path("schema")
    """Relative to the folder of beds.toml."""
    refresh: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Seconds a worker caches the named objects' signatures."""
    broker_host: str = "127.0.0.1"
    """The host part of the brokers' MariaDB account, to which `beds schema apply` grants."""
    dba: Databases = Databases()
    """The DBA's credentials, for `beds schema` only; a worker never uses them."""
