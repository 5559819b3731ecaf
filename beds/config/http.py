"""The section `[http]` of beds.toml: where the app-server node listens, and who may do what."""

from __future__ import annotations

import ipaddress
from itertools import permutations
from typing import Annotated, Literal

from pydantic import Field, model_validator

from beds.config.sections import ReadableFile, Section, Text

Address = Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}$")]
"""`host:port`."""
Claim = str | int | float | bool
Source = Annotated[str, Field(pattern=r"^(claim:.+|value:.*|actor)$")]
ALGORITHMS = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures of tokens. None of them uses a shared secret, so that a public key can never be taken for one."""


OPS = "ops"
"""The role of operators: it sees and steers the whole system on the page `/ui/`, and may read BEDS's own records."""


KEY_NAME = r"^[A-Za-z0-9_.-]{1,100}$"


class HttpJwt(Section):
    """An identity provider whose tokens are accepted."""

    issuer: Text
    audience: Text
    algorithms: Annotated[tuple[ALGORITHMS, ...], Field(min_length=1)] = ("RS256", "ES256")
    jwks_url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None = None
    """Where the provider publishes its keys; fetched again when a token names an unknown one."""
    jwks_file: ReadableFile | None = None
    """A file with the keys instead; read again when it changes."""
    roles_claim: Text = "roles"
    """The claim with the caller's roles: a list, or a text with spaces between them."""
    leeway: Annotated[float, Field(ge=0, le=300)] = 10.0
    """Seconds by which the clocks may differ."""

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> HttpJwt:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("takes jwks_url or jwks_file, and not both")
        return self


class HttpKey(Section):
    """A program that calls with a key of its own, sent as `Authorization: Bearer KEY`."""

    name: Annotated[str, Field(pattern=KEY_NAME)]
    sha256: Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...], Field(min_length=1)]
    """SHA-256 of the key in hexadecimal, several during a rotation; `beds http key` makes both."""
    roles: tuple[Text, ...] = ()
    claims: dict[str, Claim] = Field(default_factory=dict)
    """What `bind` of a role may refer to."""


class HttpRole(Section):
    """What callers with a role may do. Nothing is allowed that no role names."""

    allow: tuple[Annotated[str, Field(pattern=r"^(\*|[A-Za-z]\w*:(\*|[A-Za-z]\w*))$")], ...] = ()
    """`Template:operation` (create, create_many, update, delete), `Template:fetch`, `Template:read` for all fetches,
    `Template:*`; `jobs:rule` or `jobs:*`; `lineage:own`; `*` for everything. A ticket belongs to its caller."""
    bind: dict[Text, Source] = Field(default_factory=dict)
    """Arguments and fields that BEDS fills, from `claim:NAME`, `value:TEXT` or `actor`; the caller cannot set them."""
    rate: Annotated[float, Field(gt=0)] = 200.0
    """Requests a second that one caller may send, on average."""
    burst: Annotated[int, Field(ge=1)] = 400
    """Requests that one caller may send at once."""
    concurrency: Annotated[int, Field(ge=1)] = 64
    """Requests of one caller that are executed at the same time."""
    streams: Annotated[int, Field(ge=1)] = 64
    """Event streams that one caller may have open."""


class Http(Section):
    """The app-server node: HTTP and WebSocket for clients outside."""

    listen: Address = "127.0.0.1:8080"
    admin: Address | Literal[""] = "127.0.0.1:8081"
    """For `/livez`, `/readyz` and `/metrics`, which are not for clients; no such port when empty."""
    timeout: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Seconds for one operation; a longer one becomes a ticket by `Prefer: respond-async`."""
    body_timeout: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Seconds in which the head, and then the body, of a request must arrive, and a client must read something."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 8 * 1024 * 1024
    """The largest body of a request. A single event is limited by `[amqp] max_body_bytes`."""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 2000
    max_in_flight: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Requests that are executed at the same time; more are refused at once with 503."""
    cors_origins: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s*]+$")], ...] = ()
    """Web pages of other origins that may call."""
    trusted_proxies: tuple[Text, ...] = ()
    """Addresses whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    tls_certificate: ReadableFile | None = None
    tls_key: ReadableFile | None = None
    """PEM files. Without them a proxy in front ends TLS."""
    jwt: tuple[HttpJwt, ...] = ()
    key: tuple[HttpKey, ...] = ()
    roles: dict[Text, HttpRole] = Field(default_factory=dict)

    @property
    def is_open_to_nobody(self) -> bool:
        """True if no caller is configured. In development such a node makes a key of its own; see `local_key`."""
        return not (self.key or self.jwt)

    @property
    def is_on_loopback(self) -> bool:
        host, _ = host_and_port(self.listen)
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False  # a name, which may lead anywhere

    @model_validator(mode="after")
    def _names_are_known_once(self) -> Http:
        unknown = {role for key in self.key for role in key.roles} - self.roles.keys()
        if unknown:
            raise ValueError(f"key: there is no role {min(unknown)} in [http.roles]")
        for key in self.key:
            sources = {source for role in key.roles for source in self.roles[role].bind.values()}
            claims = {source.partition(":")[2] for source in sources if source.startswith("claim:")}
            if lacking := sorted(claims - key.claims.keys()):
                raise ValueError(f"key {key.name}: its roles bind the claim {lacking[0]}, which its claims lack")
        for what, names in (("key.name", [k.name for k in self.key]), ("jwt.issuer", [j.issuer for j in self.jwt])):
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: a name stands twice")
        for one, other in permutations([provider.issuer for provider in self.jwt], 2):
            if other.startswith(f"{one}:"):  # a subject of the one could have the name of a subject of the other
                raise ValueError(f"jwt.issuer: {other} begins with {one}, so their subjects have no different names")
        hashes = [each for key in self.key for each in key.sha256]
        if len(set(hashes)) < len(hashes):
            raise ValueError("key.sha256: two keys are the same")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together")
        return self


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of an `Address`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
