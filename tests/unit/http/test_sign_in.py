"""Who gets in: tokens of identity providers, keys of programs, and what their bearers share with nobody."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic import ValidationError
from starlette.testclient import TestClient

from beds.config.http import Http
from beds.http import sign_in
from tests.unit.http.conftest import ALL, NARROW, ROLES, application, as_caller, key

ISSUER, AUDIENCE = "https://idp.example", "beds"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
NOTICE = {"airport": "JFK", "title": "Snow", "status": "open"}


def jwks(**keys: Any) -> str:
    found = []
    for kid, private in keys.items():
        algorithm = (
            jwt.algorithms.RSAAlgorithm if isinstance(private, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
        )
        found.append({**json.loads(algorithm.to_jwk(private.public_key())), "kid": kid})
    return json.dumps({"keys": found})


def token(private: Any = RSA, kid: str | None = "one", algorithm: str = "RS256", **claims: Any) -> str:
    """A token that is accepted, but for what is given here; a claim that is None is left out."""
    now = time.time()
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 600, "roles": ["everything"], **claims}
    payload = {name: value for name, value in whole.items() if value is not None}
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(payload, private, algorithm, headers)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.json"
    file.write_text(jwks(one=RSA, curve=CURVE))
    return file


@pytest.fixture
def web(keys: Path) -> Iterator[TestClient]:
    with TestClient(application(jwt=[provider(jwks_file=keys)])) as found:
        yield found


def provider(**more: Any) -> dict[str, Any]:
    return {"issuer": ISSUER, "audience": AUDIENCE, "leeway": 0, **more}


def status(web: TestClient, bearer: str) -> int:
    found = web.get("/v1", headers=as_caller(bearer))
    assert found.status_code in (200, 401)
    if found.status_code == 401:
        assert found.headers["content-type"] == "application/problem+json"
        assert found.headers["www-authenticate"].startswith("Bearer")
    return found.status_code


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_good_token_of_either_kind_gets_in(web: TestClient) -> None:
    found = web.get("/v1", headers=as_caller(token())).json()
    assert (found["actor"], found["roles"]) == (f"jwt:{ISSUER}:ann", ["everything"])
    assert status(web, token(CURVE, "curve", "ES256")) == 200


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"exp": 1},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": float("inf")},
        {"nbf": 2**40},
        {"iat": 2**40},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": {"a": 1}},
        {"sub": "x" * 200},
        {"sub": "ann\nbob"},
        {"sub": "ann\u202ebob"},
        {"sub": "ann\x00"},
    ],
    ids=str,
)
def test_a_token_with_a_wrong_claim_is_refused(web: TestClient, claims: Mapping[str, Any]) -> None:
    try:
        bearer = token(**claims)
    except TypeError:  # PyJWT signs no such claim; a provider may
        payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + 600, **claims}
        signed = jwt.api_jws.encode(json.dumps(payload).encode(), RSA, "RS256", {"kid": "one"})
        bearer = signed
    assert status(web, bearer) == 401


def test_an_end_beyond_all_numbers_is_no_fault(web: TestClient) -> None:
    assert status(web, token(exp=10**400)) == 200


def test_forged_signatures_are_refused(web: TestClient) -> None:
    good = token()
    head, body, _ = good.split(".")
    public = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    unsigned = jwt.encode(jwt.decode(good, options={"verify_signature": False}), "", "none", {"kid": "one"})
    forged = {
        "no signature": f"{head}.{body}.",
        "alg none": unsigned,
        "alg None": unsigned.replace(head, jwt.utils.base64url_encode(b'{"alg":"None","kid":"one"}').decode()),
        "another key": token(OTHER),
        "another kind of key": token(CURVE, "one", "ES256"),
        "the id of another key": token(RSA, "curve"),
        "another algorithm": token(algorithm="RS512"),
        "the public key as a secret": confused(public),
        "changed": ".".join([head, jwt.utils.base64url_encode(b'{"sub":"root"}').decode(), good.split(".")[2]]),
    }
    for what, bearer in forged.items():
        assert status(web, bearer) == 401, what
    assert status(web, good) == 200


def confused(public: bytes) -> str:
    """A token whose HMAC has the public key as its secret. PyJWT itself refuses to make one."""
    encode = jwt.utils.base64url_encode
    claims = jwt.decode(token(), options={"verify_signature": False})
    signed = b".".join(encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": "one"}, claims))
    return (signed + b"." + encode(hmac.digest(public, signed, hashlib.sha256))).decode()


def test_a_secret_among_the_keys_of_a_provider_is_not_used(keys: Path) -> None:
    secret = b"s" * 32
    entry = {"kty": "oct", "kid": "secret", "alg": "HS256", "k": jwt.utils.base64url_encode(secret).decode()}
    keys.write_text(json.dumps({"keys": [*json.loads(jwks(one=RSA))["keys"], entry, {"kty": "none"}]}))
    with TestClient(application(jwt=[provider(jwks_file=keys)])) as web:
        assert status(web, token(secret, "secret", "HS256")) == 401
        assert status(web, token()) == 200


@pytest.mark.parametrize(
    "bearer", ["a.b.c", "..", "e30.e30.e30", "é.é.é", "x" * 20_000, "\x00", "a b", ".".join(["W1tb" * 3000] * 3)]
)
def test_what_is_no_token_is_refused(web: TestClient, bearer: str) -> None:
    found = web.get("/v1", headers={b"Authorization": f"Bearer {bearer}".encode()})
    assert found.status_code == 401


@pytest.mark.parametrize(
    ("roles", "known"),
    [
        ("everything narrow", ["everything", "narrow"]),
        (["narrow", "unknown"], ["narrow"]),
        (["narrow", 7, None, ["everything"]], ["narrow"]),
        ({"everything": True}, []),
        (True, []),
        (7, []),
        ("*", []),
        (None, []),
    ],
)
def test_roles_come_as_a_list_or_a_text(web: TestClient, roles: Any, known: list[str]) -> None:
    assert web.get("/v1", headers=as_caller(token(roles=roles))).json()["roles"] == known


def test_a_new_key_is_found_without_a_restart_and_an_old_one_ends(
    web: TestClient, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(web, token(OTHER, "two")) == 401
    keys.write_text(jwks(one=RSA, two=OTHER))
    assert status(web, token(OTHER, "two")) == 200
    keys.write_text(jwks(two=OTHER))
    assert status(web, token(sub="bob")) == 401  # ann's is remembered for some minutes
    monkeypatch.setattr(sign_in, "TOKEN_SECONDS", -1.0)
    assert status(web, token(OTHER, "two", sub="eve")) == 200
    keys.write_text("{")
    assert status(web, token(OTHER, "two", sub="eve")) == 200, "a broken file ends no key"


def test_a_token_without_a_key_id_works_with_the_only_key(web: TestClient, keys: Path) -> None:
    assert status(web, token(kid=None)) == 401, "there are two"
    keys.write_text(jwks(one=RSA))
    assert status(web, token(kid=None)) == 200


def test_a_remembered_token_ends_with_its_time(web: TestClient) -> None:
    bearer = token(exp=time.time() + 2)
    assert status(web, bearer) == 200
    deadline = time.monotonic() + 30
    while status(web, bearer) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)


# --- a provider over HTTP --------------------------------------------------------------------------------------------


class Provider:
    """Publishes keys, and does as a provider does that is down or slow.

    Args:
        keys: what it publishes.
    """

    def __init__(self, keys: str) -> None:
        self.keys, self.asked, self.fails = keys, 0, False
        self.goes_on = threading.Event()
        self.goes_on.set()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                provider.goes_on.wait(60)
                self.send_response(503 if provider.fails else 200)
                self.end_headers()
                self.wfile.write(provider.keys.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"


@contextmanager
def publishing(keys: str) -> Iterator[Provider]:
    found = Provider(keys)
    thread = threading.Thread(target=found.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.goes_on.set()
        found.server.shutdown()
        found.server.server_close()


def test_known_keys_work_while_the_provider_is_down_or_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(sign_in, "AGAIN_SECONDS", 0.0)
    with publishing(jwks(one=RSA)) as idp, TestClient(application(jwt=[provider(jwks_url=idp.url)])) as web:
        assert status(web, token()) == 200
        idp.fails = True
        for number in range(3):
            assert status(web, token(sub=f"down-{number}")) == 200
        idp.fails, asked = False, idp.asked
        idp.goes_on.clear()
        started = time.monotonic()
        for number in range(20):
            assert status(web, token(sub=f"slow-{number}")) == 200
        assert idp.asked <= asked + 1, "one fetch at a time"
        assert time.monotonic() - started < sign_in.FETCH_SECONDS, "no token waited for the provider"
        idp.keys = jwks(one=RSA, two=OTHER)
        idp.goes_on.set()
        deadline = time.monotonic() + 30
        while status(web, token(OTHER, "two")) == 401:
            assert time.monotonic() < deadline


def test_forged_key_ids_cause_no_flood_of_fetches() -> None:
    with publishing(jwks(one=RSA)) as idp, TestClient(application(jwt=[provider(jwks_url=idp.url)])) as web:
        for number in range(50):
            assert status(web, token(OTHER, f"forged-{number}")) == 401
        assert idp.asked <= 1 + 50 // sign_in.AGAIN_SECONDS


def test_a_provider_that_was_never_there_refuses_its_tokens_alone() -> None:
    with TestClient(application(jwt=[provider(jwks_url="http://127.0.0.1:9/")])) as web:
        assert status(web, token()) == 401
        assert status(web, ALL) == 200


def test_all_first_tokens_wait_for_the_first_fetch() -> None:
    with publishing(jwks(one=RSA)) as idp, TestClient(application(jwt=[provider(jwks_url=idp.url)])) as web:
        idp.goes_on.clear()
        found: list[int] = []
        threads = [threading.Thread(target=lambda n=n: found.append(status(web, token(sub=f"s{n}")))) for n in range(5)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        idp.goes_on.set()
        for thread in threads:
            thread.join()
        assert found == [200] * 5


@pytest.mark.parametrize("issuers", [("https://idp", "https://idp:8443"), ("https://idp:8443", "https://idp")])
def test_two_providers_cannot_name_the_same_subject(issuers: tuple[str, str], keys: Path) -> None:
    """`https://idp` with the subject `8443:ann` would be `ann` of `https://idp:8443`."""
    with pytest.raises(ValidationError, match="begins with"):
        Http.model_validate({"jwt": [provider(jwks_file=keys, issuer=issuer) for issuer in issuers]})


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_rotates_with_two_hashes() -> None:
    both = {**key("shop", "old", "everything"), "sha256": [key("", each)["sha256"][0] for each in ("old", "new")]}
    with TestClient(application(key=[both])) as web:
        made = web.post("/v1/Notices", json=NOTICE, headers={**as_caller("old"), "Prefer": "respond-async"})
        assert made.status_code == 202
        assert web.get(made.headers["location"], headers=as_caller("new")).status_code == 200, "it is the same caller"
        assert status(web, both["sha256"][0]) == 401, "a hash is no key"
    with TestClient(application(key=[key("shop", "new", "everything")])) as web:
        assert [status(web, each) for each in ("old", "new")] == [401, 200]


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"bearer  {ALL}x", f"Basic {ALL}", ALL, f"Bearer {ALL}, Bearer x", "Bearer \xff"],
)
def test_a_header_that_is_no_key_lets_nobody_in(header: str) -> None:
    with TestClient(application()) as web:
        assert web.get("/v1", headers={b"Authorization": header.encode("latin-1")}).status_code == 401


def test_the_answer_to_a_forger_has_no_reason(web: TestClient) -> None:
    texts = {web.get("/v1", headers=as_caller(each)).text for each in ("wrong", token(OTHER), token(exp=1), "a.b.c")}
    assert len(texts) == 1


# --- what belongs to another subject ---------------------------------------------------------------------------------


def test_another_subject_has_its_own_tickets_keys_and_lineage(web: TestClient) -> None:
    ann, bob = as_caller(token(sub="ann")), as_caller(token(sub="bob"))
    sent = {**ann, "Prefer": "respond-async", "Idempotency-Key": "k"}
    made = web.post("/v1/Notices", json=NOTICE, headers=sent)
    address = made.headers["location"]
    assert web.get(address, headers=ann).status_code == 200
    unknown = web.get("/v1/tickets/01234567-0000-7000-8000-000000000000", headers=bob)
    for caller in (bob, as_caller(ALL), as_caller(NARROW)):
        for method, path in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")):
            refused = web.request(method, address + path, headers=caller)
            assert (refused.status_code, refused.json()["code"]) == (404, unknown.json()["code"])
    job = made.json()["ticket"]
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", ":pause"), ("POST", ":resume"), ("GET", "/rejects")):
        assert web.request(method, f"/v1/jobs/{job}{path}", headers=bob).status_code == 404
    assert web.get(f"/v1/lineage/{made.json()['event_id']}", headers=bob).status_code == 404
    # The same key and another body: bob's is a write of its own, and no conflict with ann's.
    own = web.post("/v1/Notices", json={**NOTICE, "title": "Ice"}, headers={**bob, "Idempotency-Key": "k"})
    assert own.status_code == 201
    assert own.headers["beds-event-id"] != made.headers["beds-event-id"]


def test_a_bound_claim_cannot_be_chosen_by_any_way(keys: Path) -> None:
    roles = {**ROLES, "own": {"allow": ["Airlines:*", "Notices:*"], "bind": {"carrier": "claim:carrier"}}}
    with TestClient(application(jwt=[provider(jwks_file=keys)], roles=roles)) as web:
        web.post("/v1/Airlines", json={"carrier": "BB", "name": "B"}, headers=as_caller(ALL))
        own = as_caller(token(roles=["own"], carrier="AA"))
        assert web.get("/v1/Airlines:by_carrier?carrier=BB", headers=own).status_code == 403
        assert web.get("/v1/Airlines?using=by_carrier&carrier=BB", headers=own).status_code == 403
        assert web.get("/v1/Airlines:by_carrier?carrier=AA&carrier=BB", headers=own).status_code == 400
        assert web.get("/v1/Airlines:by_carrier?carrier=bb", headers=own).status_code == 403
        assert web.post("/v1/Airlines", json={"carrier": "BB", "name": "x"}, headers=own).status_code == 403
        many = [{"carrier": "AA", "name": "A"}, {"carrier": "CC", "name": "C"}]
        assert web.post("/v1/Airlines:batch", json=many, headers=own).status_code == 403
        lines = web.post(
            "/v1/Airlines:batch", content="carrier,name\nCC,C\n", headers={**own, "Content-Type": "text/csv"}
        )
        assert lines.status_code == 403
        for call in BOUND_CALLS:
            assert web.post("/v1:batch", json=[call], headers=own).json()[0]["status"] in (403, 404, 422), call
        with web.websocket_connect("/v1/ws", headers=own) as socket:
            for number, call in enumerate(BOUND_CALLS):
                socket.send_json({"id": number, **call})
                assert socket.receive_json()["status"] in (403, 404, 422), call
        names = {
            each["carrier"]: each["name"]
            for each in web.get("/v1/Airlines:all", headers=as_caller(ALL)).json()["records"]
        }
        assert names == {"BB": "B"}
        # A token without the claim, or with one of another form, can do nothing.
        refused = web.post("/v1/Airlines", json={"name": "x"}, headers=as_caller(token(roles=["own"])))
        assert refused.status_code == 403
        listed = web.post("/v1/Airlines", json={"name": "x"}, headers=as_caller(token(roles=["own"], carrier=["AA"])))
        assert listed.status_code == 422


BOUND_CALLS: list[dict[str, Any]] = [
    {"template": "Airlines", "operation": "create", "record": {"carrier": "BB", "name": "x"}},
    {"template": "Airlines", "operation": "create", "record": [["carrier", "CC"], ["name", "x"]]},
    {"template": "Airlines", "operation": "create_many", "records": [{"carrier": "CC", "name": "x"}]},
    {"template": "Airlines", "operation": "create_many", "records": [[["carrier", "CC"], ["name", "x"]]]},
    {"template": "Airlines", "operation": "update", "record": {"carrier": "BB", "name": "x"}},
    {"template": "Airlines", "operation": "update", "record": {"carrier": "bb", "name": "x"}},
    {"template": "Airlines", "operation": "delete", "key": "BB"},
    {"template": "Airlines", "operation": "delete", "key": {"carrier": "BB"}},
    {"template": "Airlines", "operation": "delete", "key": ["BB"]},
    {"template": "Airlines", "operation": "by_carrier", "args": {"carrier": "BB"}},
    {"template": "Airlines", "operation": "by_carrier", "args": {"carrier": ["AA", "BB"]}},
    {"template": "Airlines", "operation": "by_carrier", "args": {"carrier": {"$ne": "AA"}}},
    {"template": "Airlines", "operation": "by_carrier", "args": {"carrier": "AA"}, "using": "all"},
    {"template": "Notices", "operation": "delete", "key": "0190d4c3-0000-7000-8000-000000000000"},
    {"template": "msTickets", "operation": "by_state", "args": {"state": "PENDING"}},
]
