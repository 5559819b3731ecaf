"""URLs of several hosts, `amqp://user:password@a:5672,b:5672/vhost`: their form, and one URL for each host."""

from __future__ import annotations

from urllib.parse import urlsplit


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


def check_host(text: str) -> None:
    """Raises ValueError: this is no `host` or `host:port`. The error shows it, since it holds no secret."""
    try:
        parts = urlsplit(f"//{text}")
        valid = bool(parts.hostname) and parts.netloc == text and parts.port != 0 and text == text.strip()
        valid &= not (set(text) & set("@/?#;,%\\ "))
    except ValueError:  # an invalid port or IPv6 address
        valid = False
    if not valid:
        raise ValueError(f"{text!r} is no host or host:port; several are joined by commas")


def check_hosts(texts: list[str]) -> None:
    """Raises ValueError: one is no `host` or `host:port`, or is listed twice."""
    for text in texts:
        check_host(text)
    if len(set(texts)) < len(texts):
        raise ValueError("a host is listed twice")


def check_amqp(url: str) -> None:
    """Raises ValueError: the URL is not of the form that all parts understand. The error shows no password."""
    form = "amqp://user:password@host:port/vhost, with several hosts as a:5672,b:5672"
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in ("amqp", "amqps") or url.count("://") != 1:
        raise ValueError(f"not a URL of the form {form} (or amqps://)")
    try:
        parts = urlsplit(url)
    except ValueError:  # of an IPv6 address; its words may hold the URL
        raise ValueError(f"not a URL of the form {form}") from None
    user, _, hosts = parts.netloc.rpartition("@")
    if set(";@") & set(user) or set(";,#?") & set(parts.path) or parts.query or parts.fragment:
        raise ValueError(
            f"not a URL of the form {form}: user and password stand once, and `/ @ : ; , ? # %` in them or in the "
            f"vhost are written as %XX"
        )
    check_hosts(hosts.split(","))
