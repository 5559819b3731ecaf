"""URLs of several hosts, `amqp://user:password@a:5672,b:5672/vhost`: their form, and one URL for each host."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_NAME = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?"
)
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(%25[A-Za-z0-9]+)?")
_HOST = re.compile(rf"(?P<name>{_NAME.pattern}|\[{_IPV6.pattern}\])(:(?P<port>[0-9]{{1,5}}))?")
_SHOWN = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,100}")
"""The texts that an error may show; other characters may belong to a password."""
_PORTS = {"amqp": 5672, "amqps": 5671}


def each_host(url: str) -> list[str]:
    """The same URL for each of its hosts alone."""
    netloc = urlsplit(url).netloc
    user, at, hosts = netloc.rpartition("@")
    before, after = url.split(netloc, 1) if netloc else (url, "")
    return [f"{before}{user}{at}{host}{after}" for host in hosts.split(",")]


def secret_of(url: str) -> str:
    """User, password and vhost of a URL: what stays the same when hosts are added."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[0]}{parts.path}"


def check_hosts(texts: list[str], default_port: int) -> None:
    """Raises ValueError: one is no `host` or `host:port`, or is listed twice. The error shows no password."""
    known: set[tuple[str, int]] = set()
    for text in texts:
        found = _HOST.fullmatch(text)
        port = int(found["port"] or default_port) if found else 0
        if found is None or not 0 < port < 65536 or len(found["name"]) > 255:
            shown = repr(text) if _SHOWN.fullmatch(text) else f"an entry of {len(text)} characters"
            raise ValueError(f"{shown} is no host or host:port; several are joined by commas")
        if (place := (found["name"].lower(), port)) in known:
            raise ValueError(f"the host {text} is listed twice")
        known.add(place)


def check_amqp(url: str) -> None:
    """Raises ValueError: the URL is not of the form that all parts understand. The error shows no password."""
    form = "amqp://user:password@host:port/vhost, with several hosts as a:5672,b:5672"
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _PORTS or url.count("://") != 1 or not url.isprintable() or " " in url:
        raise ValueError(f"not a URL of the form {form} (or amqps://)")
    try:
        parts = urlsplit(url)
    except ValueError:  # of an IPv6 address; its words may hold the URL
        raise ValueError(f"not a URL of the form {form}") from None
    user, at, hosts = parts.netloc.rpartition("@")
    if (
        (at and not user)
        or set(";,@") & set(user)
        or set(";,#?") & set(parts.path)
        or re.search("%(?![0-9A-Fa-f]{2})", user + parts.path)
        or parts.query
        or parts.fragment
    ):
        raise ValueError(
            f"not a URL of the form {form}: user and password stand once, and `/ @ : ; , ? # %` in them or in the "
            f"vhost are written as %XX"
        )
    check_hosts(hosts.split(","), _PORTS[scheme])
