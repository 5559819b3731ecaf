"""The rights of each AMQP and database user, without a server."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from pydantic import SecretStr

from beds.adapters.mariadb.health import surplus as surplus_in_mariadb
from beds.adapters.mongo.health import surplus as surplus_in_mongodb
from beds.config.sections import Amqp, Flower
from beds.errors import ConfigurationError
from beds.transport.rights import CLIENT, WORKER, User, definitions, monitor_of, users_of
from beds.wire.routes import DEAD, EVENTS, LOGS, QUEUES, node_queue

AMQP = Amqp(url=SecretStr("amqp://app:p%40ss@h/v"), worker_url=SecretStr("amqps://worker:w@h/v"))
CELERYS = ("celeryev", "celery.pidbox", "rec.read.1a2b3c@ms.celery.pidbox", "reply.celery.pidbox",
           "4f.reply.celery.pidbox", "celery_delayed_27", "celeryev.4f")  # fmt: skip


@pytest.mark.parametrize("name", [*QUEUES, EVENTS, LOGS, DEAD, node_queue("ms"), *CELERYS])
def test_a_worker_may_have_what_is_its_own(name: str) -> None:
    for pattern in (WORKER.configure, WORKER.write, WORKER.read):
        assert re.search(pattern, name)


@pytest.mark.parametrize("name", ["orders", "amq.topic", "my.beds.events", "recording", "relay", "amq.default.x"])
def test_a_worker_may_not_have_what_is_another_applications(name: str) -> None:
    for pattern in (WORKER.configure, WORKER.write, WORKER.read):
        assert not re.search(pattern, name)


def test_a_worker_may_reply_and_a_client_may_publish_only() -> None:
    assert re.search(WORKER.write, "amq.default")
    assert not re.search(WORKER.configure, "amq.default")
    names = {*QUEUES, EVENTS, LOGS, DEAD, "amq.default", ""}
    assert {name for name in names if re.search(CLIENT.write, name)} == {EVENTS, LOGS}
    assert not any(re.search(CLIENT.configure, n) or re.search(CLIENT.read, n) for n in (*QUEUES, EVENTS))


def test_definitions_hold_hashes_and_no_password() -> None:
    users = [*users_of(AMQP), *monitor_of(Flower(broker_api=SecretStr("http://mon:m0n-pass@h:15672/api/")))]
    found = definitions("v", users)
    text = json.dumps(found) + repr(users)
    assert "p@ss" not in text
    assert "m0n-pass" not in text
    assert [user["name"] for user in found["users"]] == ["app", "worker", "mon"]
    assert found["users"][2]["tags"] == "monitoring"
    raw = base64.b64decode(found["users"][0]["password_hash"])
    assert raw[4:] == hashlib.sha256(raw[:4] + b"p@ss").digest()


def test_a_client_of_a_few_keys() -> None:
    found = definitions("v", users_of(AMQP, ["rec.read", "calgon"]))
    keys = {topic["exchange"]: topic["write"] for topic in found["topic_permissions"] if topic["user"] == "app"}
    assert [key for key in QUEUES if re.search(keys[EVENTS], key)] == ["rec.read", "calgon"]
    with pytest.raises(ConfigurationError, match=r"rec\.reed.*rec\.read"):
        users_of(AMQP, ["rec.reed"])


def test_one_user_for_both_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="share the AMQP user"):
        users_of(Amqp(url=SecretStr("amqp://one:x@h/v")))
    with pytest.raises(ConfigurationError, match="no user and password"):
        User.of("amqp://h/v", CLIENT)


@pytest.mark.parametrize(
    ("grant", "found"),
    [
        ("GRANT USAGE ON *.* TO `b`@`h` IDENTIFIED BY PASSWORD '*94BDCEBE'", []),
        ("GRANT EXECUTE ON PROCEDURE `beds`.`gates_create` TO `b`@`h`", []),
        ("GRANT EXECUTE ON FUNCTION `beds`.`count` TO `b`@`h`", []),
        ("GRANT SELECT ON `beds`.`a_view` TO `b`@`h`", []),
        ("GRANT SELECT ON `beds`.`a_table` TO `b`@`h`", ["SELECT ON `beds`.`a_table`"]),
        ("GRANT EXECUTE ON `beds`.* TO `b`@`h`", ["EXECUTE ON `beds`.*"]),
        ("GRANT SELECT, INSERT ON `beds`.`a_view` TO `b`@`h`", ["SELECT, INSERT ON `beds`.`a_view`"]),
        ("GRANT ALL PRIVILEGES ON *.* TO `b`@`h` IDENTIFIED BY PASSWORD '*94' WITH GRANT OPTION",
         ["ALL PRIVILEGES ON *.* with grant option"]),
        ("GRANT EXECUTE ON PROCEDURE `beds`.`x` TO `b`@`h` WITH GRANT OPTION",
         ["EXECUTE ON PROCEDURE `beds`.`x` with grant option"]),
        ("GRANT `dba` TO `b`@`h`", ["GRANT `dba` TO `b`@`h`"]),
    ],
)  # fmt: skip
def test_what_a_broker_has_too_much_in_mariadb(grant: str, found: list[str]) -> None:
    assert surplus_in_mariadb([grant], {"`beds`.`a_view`"}) == found


@pytest.mark.parametrize(
    ("resource", "actions", "found"),
    [
        ({"db": "beds", "collection": "notes"}, ["find", "insert", "update", "remove"], []),
        ({"db": "beds", "collection": "notes"}, ["find", "dropCollection"], ["dropCollection on beds.notes"]),
        ({"db": "beds", "collection": "beds_objects"}, ["find"], []),
        ({"db": "beds", "collection": "beds_objects"}, ["find", "update"], ["update on beds.beds_objects"]),
        ({"db": "beds", "collection": ""}, ["find"], ["find on beds.*"]),
        ({"db": "", "collection": ""}, ["find"], ["find on every database.*"]),
        ({"db": "other", "collection": "x"}, ["find"], ["find on other.x"]),
        ({"cluster": True}, ["shutdown"], ["shutdown on the whole cluster"]),
    ],
)
def test_what_a_broker_has_too_much_in_mongodb(
    resource: dict[str, object], actions: list[str], found: list[str]
) -> None:
    assert surplus_in_mongodb([{"resource": resource, "actions": actions}], "beds", {"beds_objects"}) == found
