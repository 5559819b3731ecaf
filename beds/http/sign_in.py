"""Who sends a request: a program with a key, or the bearer of a token that an identity provider signed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

import jwt
from jwt.types import Options

from beds.config.http import Http, HttpJwt, HttpKey
from beds.http.access import Caller
from beds.http.problems import Problem

TOKENS = 10_000
"""Verified tokens that are remembered, by their hash."""
TOKEN_SECONDS = 300.0
"""A verified token is verified again after this time, so that a withdrawn key ends."""
TOKEN_CHARACTERS = 16_384
ACTOR_CHARACTERS = 200
FETCH_SECONDS = 5.0
KEYS_BYTES = 1 << 20
REFRESH_SECONDS = 600.0
"""Age at which a provider's keys are fetched again."""
AGAIN_SECONDS = 10.0
"""Time between two fetches for unknown keys, so that forged tokens cause no flood."""
_ASK = {"WWW-Authenticate": "Bearer"}

logger = logging.getLogger("beds.http")


class _RefusalLog:
    """Logs why callers are not let in, at most once a second: a flood of forged tokens does not flood the log."""

    def __init__(self) -> None:
        self._next = 0.0
        self._left_out = 0

    def add(self, why: str) -> None:
        if time.monotonic() < self._next:
            self._left_out += 1
            return
        more = f", and {self._left_out} more before it" if self._left_out else ""
        logger.info("a request was not let in: %s%s", why, more)
        self._next, self._left_out = time.monotonic() + 1.0, 0


_refusal_log = _RefusalLog()


def _refused(why: str) -> Problem:
    # One answer for all reasons: a forger learns nothing from it.
    _refusal_log.add(why)
    headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    return Problem(401, "unauthorized", "The token or key is not accepted.", headers=headers)


class _Keys:
    """The public keys of one identity provider."""

    def __init__(self, provider: HttpJwt) -> None:
        self._provider = provider
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._tried_at = float("-inf")
        self._stamp: Any = None
        self._reading: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> jwt.PyJWK | None:
        """The key with this id; the only key if the token names none."""
        now, known = time.monotonic(), self._named(kid)
        is_due = self._is_stale(now) or (known is None and now - self._tried_at >= AGAIN_SECONDS)
        if is_due and self._reading is None:
            self._reading = asyncio.create_task(self._read())
        # A slow provider delays no token whose key is known. A file is read at once, so that a key ends with it.
        if self._reading is not None and (known is None or self._provider.jwks_file is not None):
            await asyncio.wait([self._reading])
        return self._named(kid)

    def _named(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _is_stale(self, now: float) -> bool:
        if (file := self._provider.jwks_file) is not None:
            with contextlib.suppress(OSError):
                return bool(file.stat().st_mtime_ns != self._stamp)
            return False
        return now - self._read_at >= REFRESH_SECONDS and now - self._tried_at >= AGAIN_SECONDS

    async def _read(self) -> None:
        self._tried_at = time.monotonic()
        try:
            if (file := self._provider.jwks_file) is not None:
                self._stamp = file.stat().st_mtime_ns
                text = file.read_bytes()
            else:
                text = await asyncio.wait_for(asyncio.to_thread(self._fetch), FETCH_SECONDS)
            keys = {}
            for entry in json.loads(text)["keys"]:
                with contextlib.suppress(jwt.PyJWKError, jwt.InvalidKeyError):  # of a kind that is not used here
                    keys[str(entry.get("kid", ""))] = jwt.PyJWK(entry)
            self._keys, self._read_at = keys, self._tried_at
        except (OSError, ValueError, KeyError, TypeError, AttributeError, HTTPException, RecursionError) as error:
            # The keys so far stay in use: a provider that is away locks no caller out.
            logger.warning("the keys of %s cannot be read: %s", self._provider.issuer, type(error).__name__)
        finally:
            self._reading = None

    def _fetch(self) -> bytes:
        assert self._provider.jwks_url is not None
        try:
            reply = urllib.request.urlopen(self._provider.jwks_url, timeout=FETCH_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()  # it is a response, with a connection
            raise
        with reply:
            found, end = b"", time.monotonic() + FETCH_SECONDS
            while part := reply.read1(KEYS_BYTES):
                found += part
                if len(found) > KEYS_BYTES or time.monotonic() > end:
                    raise ValueError("too large or too slow")
            return found


class SignIn:
    """Finds the caller of a request.

    Args:
        http: `[http]` of beds.toml.
    """

    def __init__(self, http: Http) -> None:
        self._http = http
        self._by_hash = {digest: key for key in http.key for digest in key.sha256}
        self._providers = {provider.issuer: (provider, _Keys(provider)) for provider in http.jwt}
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()

    async def caller(self, authorization: str | None) -> Caller:
        """The caller named by a header `Authorization`. Raises Problem (401)."""
        if not authorization:
            raise Problem(401, "unauthorized", "Send a key or a token: Authorization: Bearer …", headers=_ASK)
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > TOKEN_CHARACTERS:
            raise _refused("it is no bearer token")
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        if (known := self._known.get(digest)) is not None:
            if known[0] > time.time():
                self._known.move_to_end(digest)
                return known[1]
            del self._known[digest]
        if (key := self._key(digest.hex())) is not None:
            return self._remember(digest, float("inf"), self._caller(f"key:{key.name}", key.roles, key.claims))
        if token.count(".") != 2:
            raise _refused("there is no such key")
        claims, provider = await self._claims(token)
        actor = f"jwt:{provider.issuer}:{claims['sub']}"
        if len(actor) > ACTOR_CHARACTERS or not actor.isprintable():
            raise _refused("the subject is no printable name of a usual length")
        roles = claims.get(provider.roles_claim, ())
        names = roles.split() if isinstance(roles, str) else roles if isinstance(roles, list) else ()
        until = time.time() + TOKEN_SECONDS
        if int(claims["exp"]) < until:
            until = min(until, int(claims["exp"]) + provider.leeway)
        return self._remember(digest, until, self._caller(actor, names, claims))

    def _key(self, digest: str) -> HttpKey | None:
        found = None
        for known, key in self._by_hash.items():
            if hmac.compare_digest(known, digest):
                found = key
        return found

    def _caller(self, actor: str, names: Any, claims: Mapping[str, Any]) -> Caller:
        given = {name for name in names if isinstance(name, str)}
        return Caller(actor, {name: role for name, role in self._http.roles.items() if name in given}, claims)

    def _remember(self, digest: bytes, until: float, caller: Caller) -> Caller:
        self._known[digest] = until, caller
        if len(self._known) > TOKENS:
            self._known.popitem(last=False)
        return caller

    async def _claims(self, token: str) -> tuple[dict[str, Any], HttpJwt]:
        """The verified claims of a token, and who issued it."""
        try:
            header = jwt.get_unverified_header(token)
            unverified = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _refused("it is no token") from None
        issuer = unverified.get("iss")
        found = self._providers.get(issuer) if isinstance(issuer, str) else None
        if found is None:
            raise _refused("its issuer is none of [http.jwt]")
        provider, keys = found
        kid = header.get("kid")
        key = await keys.find(kid if isinstance(kid, str) else None)
        if key is None:
            raise _refused("its key is unknown")
        required: Options = {"require": ["exp", "iss", "aud", "sub"]}
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key=key,
                algorithms=list(provider.algorithms),
                audience=provider.audience,
                issuer=provider.issuer,
                leeway=provider.leeway,
                options=required,
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise _refused(type(error).__name__) from None
        if not isinstance(claims["sub"], str) or not claims["sub"]:
            raise _refused("its subject is no text")
        return claims, provider
