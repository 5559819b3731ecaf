"""The common part of the benchmarks: a separate vhost, workers, and a deadline for each wait."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from beds.config import Settings, load_settings
from beds.errors import BedsError
from beds.schema_tools.apply import changes
from beds.stack.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
VHOST = "bench"
DEADLINE = 120.0
"""Seconds for any one wait."""


def ready_stack(report: Callable[[str], None]) -> tuple[Stack, Settings]:
    """The local stack, started, with its schema applied."""
    os.chdir(ROOT)
    stack = Stack(ROOT / ".beds")
    stack.up(report)
    settings = load_settings()
    with changes(settings) as pending:
        for change in pending:
            change.apply()
    return stack, settings


@contextmanager
def own_vhost(settings: Settings, stack: Stack) -> Iterator[Settings]:
    """A separate vhost, in which no other worker consumes."""
    stack.rabbitmq.control("add_vhost", VHOST)
    try:
        for user in ("beds_worker", "beds_app"):
            stack.rabbitmq.control("set_permissions", "-p", VHOST, user, ".*", ".*", ".*")
        urls = {
            name: f"{url.rsplit('/', 1)[0]}/{VHOST}"
            for name, url in (("url", settings.amqp.client_url), ("worker_url", settings.amqp.broker_url))
        }
        os.environ |= {f"BEDS_AMQP__{name.upper()}": url for name, url in urls.items()}
        amqp = settings.amqp.model_copy(update={name: SecretStr(url) for name, url in urls.items()})
        yield settings.model_copy(update={"amqp": amqp})
    finally:
        stack.rabbitmq.control("delete_vhost", VHOST)


@contextmanager
def worker(app: str, queue: str, *options: str, env: Mapping[str, str] | None = None) -> Iterator[psutil.Process]:
    """A Celery worker, with its output in .beds/run, until the end of the block."""
    arguments = ("celery", "-A", app, "worker", "-Q", queue, *options)
    with module(*arguments, log=f"bench-{app}", env=env) as process:
        yield process


@contextmanager
def module(
    *arguments: str, log: str, env: Mapping[str, str] | None = None, python: str = sys.executable
) -> Iterator[psutil.Process]:
    """A process that runs a Python module, with its output in .beds/run, until the end of the block."""
    command = [python, "-m", *arguments]
    with (ROOT / ".beds" / "run" / f"{log}.log").open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=output, stderr=output)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_answered(ask: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            ask()
            return
        except (BedsError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the records did not arrive")
        time.sleep(0.02)
