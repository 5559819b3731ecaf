"""Log records during kills and restarts: each is stored once, in its process's order, or counted as dropped."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo import MongoClient

from beds.config import Settings
from beds.domain.identity import uuid7
from beds.stack.stack import Stack
from beds.transport.log_handler import LogHandler
from tests.conftest import ADMIN_QUEUES, OwnVhost, environment, running_worker, wait_for

PROCESSES, EACH = 4, 50_000
FLOOD = """
import logging, sys
import beds
handler = beds.LogHandler()
logger = logging.getLogger(sys.argv[1])
logger.setLevel(logging.INFO)
logger.addHandler(handler)
for n in range(int(sys.argv[2])):
    logger.info("%d", n)
assert handler.shipper.flush(240), "not all were sent"
"""


@pytest.fixture
def collection(settings: Settings) -> Iterator[Any]:
    dba = settings.schema_.dba.rec
    assert dba is not None
    with MongoClient[dict[str, Any]](dba.uri.get_secret_value()) as mongo:
        yield mongo[dba.database].msLogs


@pytest.mark.timeout(420)
def test_a_flood_arrives_complete_and_once_through_kills_and_restarts(
    project: Path, own_vhost: OwnVhost, stack: Stack, collection: Any
) -> None:
    env = own_vhost.env | {"BEDS_METRICS__PROMETHEUS": "", "BEDS_LOGGING__BUFFER_RECORDS": str(EACH)}
    name = f"tests.{uuid7().hex}"
    with running_worker(project, ADMIN_QUEUES, env=env) as first:
        wait_for(lambda: "beds.audit" in stack.rabbitmq.control("list_queues", "-p", "own", "name"), 60, "the queues")
        flood = [
            subprocess.Popen(
                [sys.executable, "-c", FLOOD, name, str(EACH)], cwd=project, env=environment(project, **env),
                stderr=subprocess.PIPE, text=True,
            )
            for _ in range(PROCESSES)
        ]  # fmt: skip
        try:
            wait_for(lambda: collection.count_documents({"logger": name}) > 1000, 60, "the first records")
            for admin in (*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)):
                os.kill(admin.pid, signal.SIGKILL)
            first.wait()
            with running_worker(project, ADMIN_QUEUES, env=env):
                mongodb = stack.server("mongodb")
                mongodb.down()
                mongodb.up()
                stack.rabbitmq.down()
                stack.rabbitmq.up()
                for process in flood:  # each ends when RabbitMQ has all it logged
                    _, said = process.communicate(timeout=300)
                    assert process.returncode == 0, said
                total = PROCESSES * EACH
                wait_for(lambda: collection.count_documents({"logger": name}) >= total, 180, "the last records")
        finally:
            for process in flood:
                process.kill()
                process.communicate()
    assert collection.count_documents({"logger": name}) == PROCESSES * EACH
    for process in flood:
        query = {"host": {"$exists": True}, "pid": process.pid, "logger": name}
        messages = [row["message"] for row in collection.find(query, {"message": 1}).sort([("host", 1), ("seq", 1)])]
        assert messages == [str(n) for n in range(EACH)]
    assert collection.count_documents({"logger": name, "dropped": {"$exists": True}}) == 0
    collection.delete_many({"logger": name})


@pytest.mark.timeout(180)
def test_what_is_dropped_is_counted_exactly_and_is_of_the_lowest_level(
    settings: Settings, workers: None, stack: Stack, collection: Any
) -> None:
    small = settings.logging.model_copy(update={"buffer_records": 1000, "batch_records": 100})
    handler = LogHandler(settings.model_copy(update={"logging": small}))
    logger = logging.getLogger(f"tests.{uuid7().hex}")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.info("before")
    assert handler.shipper.flush(30)
    stack.rabbitmq.down()
    try:
        for n in range(5000):
            logger.log(logging.ERROR if n % 10 == 0 else logging.INFO, "%d", n)
    finally:
        stack.rabbitmq.up()
    logger.warning("after")
    assert handler.shipper.flush(90)
    logger.removeHandler(handler)
    handler.shipper.close()
    by_name = {"logger": logger.name}
    wait_for(lambda: collection.count_documents(by_name | {"message": "after"}) == 1, 60, "the last record")

    def settled() -> bool:
        found = list(collection.find(by_name))
        return len(found) + sum(int(record.get("dropped", 0)) for record in found) == 5002

    wait_for(settled, 60, "an exact count")
    errors = list(collection.find(by_name | {"level": "ERROR"}))
    assert len(errors) == 500, "an error was dropped while there were lines of less worth"
    assert collection.count_documents(by_name | {"level": "INFO"}) < 1000


def test_a_log_call_does_not_wait_for_rabbitmq(settings: Settings, stack: Stack, workers: None) -> None:
    """While RabbitMQ is blocked by an alarm, thousands of log calls return at once."""
    handler = LogHandler(settings)
    logger = logging.getLogger(f"tests.{uuid7().hex}")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    stack.rabbitmq.control("set_vm_memory_high_watermark", "0")
    try:
        logger.info("fills the socket")
        time.sleep(1)
        for n in range(3000):
            logger.info("%d", n)
        assert not handler.shipper.flush(0.5), "RabbitMQ took records in spite of its alarm"
    finally:
        stack.rabbitmq.control("set_vm_memory_high_watermark", "absolute", "2GB")
    assert handler.shipper.flush(60)
    logger.removeHandler(handler)
    handler.shipper.close()
