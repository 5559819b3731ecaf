"""Shared by the cluster tests: additional servers, a load of writes, and the comparison afterwards.

Ports are those after `PORT_BASE`: RabbitMQ's from 1069, MongoDB's from 1417, MariaDB's from 1506; all lie below 2000.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import MySQLdb
import psutil
from pymongo import MongoClient
from pymongo.read_concern import ReadConcern

from beds.client.client import Client
from beds.config import Settings
from beds.errors import BedsError
from beds.stack.plan import DATABASE, Plan
from beds.stack.server import Server
from tests.conftest import ROOT, environment
from tests.proxy import SilentProxy

FOLDER = ROOT / ".beds" / "cluster"
PATIENCE = 180.0
"""Seconds without progress after which a test fails; total duration does not matter."""
CALL_SECONDS = 60.0
PAUSE = 0.02
"""Seconds between two calls of a thread: each fault hits some calls, and the machine is not saturated."""
OK = "ok"
AnyServer = TypeVar("AnyServer", bound=Server)


def kill(server: Server, *, wait: bool = True) -> bool:
    """Send SIGKILL to a server and its helper processes. False when it did not run.

    Args:
        server: the server.
        wait: whether to wait until they have ended.
    """
    family = server.daemon.family()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if wait:
        psutil.wait_procs(family, timeout=PATIENCE)
    return bool(family)


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Stop all processes of a server, which keeps its ports open."""
    family = server.daemon.family()
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()


@contextmanager
def servers_of_their_own(name: str, make: Callable[[Path], Sequence[AnyServer]]) -> Iterator[Sequence[AnyServer]]:
    """Servers under a separate folder. They and the remains of an interrupted run are removed.

    Args:
        name: of the folder.
        make: called with the folder; returns the servers, none started.
    """
    folder = FOLDER / name
    found = make(folder)

    def clear() -> None:
        for server in found:
            kill(server)  # its data is deleted, so a clean shutdown is not needed
            server.down()
        shutil.rmtree(folder, ignore_errors=True)

    clear()
    try:
        yield found
    finally:
        clear()


class SwitchedProxy(SilentProxy):
    """Forwards new connections to another server; old connections stay open."""

    def lead_to(self, port: int) -> None:
        self._target = port


@contextmanager
def running_node(project: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`beds node run`, as a service manager starts it; its output goes to `cluster.log` in the project."""
    with (project / "cluster.log").open("ab") as log:
        command = ("beds", "node", "run")
        node = subprocess.Popen(command, cwd=project, env=environment(project, **env), stdout=log, stderr=log)
    try:
        yield node
    finally:
        node.terminate()
        try:
            node.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()


@dataclass(frozen=True)
class Answer:
    """The answer to one call.

    Args:
        template, key: the record to create.
        code: `ok`, or the error's code; the type's name for an error that is not from BEDS.
        nothing_written: whether the error says that nothing was written.
        words: the error's message.
    """

    template: str
    key: str
    code: str
    nothing_written: bool = False
    words: str = ""


def wrote_nothing(answer: Answer) -> bool:
    """Whether the store was away, and the error says that nothing was written."""
    return answer.code == "store_unavailable" and answer.nothing_written


class Load:
    """Threads that create records, each with a unique key, and store the answers.

    Args:
        settings: of the client, which they share.
        templates: in turn.
        threads: how many.
    """

    def __init__(self, settings: Settings, templates: Sequence[str], threads: int = 4) -> None:
        self.name = uuid.uuid4().hex[:10]
        self.answers: list[Answer] = []
        self._templates = templates
        self._client = Client(settings)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(CALL_SECONDS + PATIENCE)
        self._client.close()
        assert not any(thread.is_alive() for thread in self._threads), "a call outlasts its deadline"

    def _work(self, thread: int) -> None:
        number = 0
        while not self._stop.is_set():
            template = self._templates[number % len(self._templates)]
            self.answers.append(create(self._client, template, f"{self.name}-{thread}-{number}"))
            number += 1
            time.sleep(PAUSE)

    def wait_for_more(self, number: int = 40) -> None:
        """Wait until `number` more records of each template are created."""
        goal = {template: self.count(template) + number for template in self._templates}
        deadline = time.monotonic() + PATIENCE
        while any(self.count(template) < count for template, count in goal.items()):
            last = [answer for answer in self.answers if answer.code != OK][-3:]
            assert time.monotonic() < deadline, f"no progress: told {dict(self.told())}, lastly {last}"
            time.sleep(0.1)

    def count(self, template: str, code: str = OK) -> int:
        return sum(answer.template == template and answer.code == code for answer in list(self.answers))

    def told(self) -> Counter[str]:
        """The number of answers per code."""
        return Counter(answer.code for answer in list(self.answers))

    def unlike(self, expected: Callable[[Answer], bool]) -> list[Answer]:
        """Answers that are neither `ok` nor as expected."""
        return [answer for answer in self.answers if answer.code != OK and not expected(answer)]


def create(client: Client, template: str, key: str, seconds: float = CALL_SECONDS) -> Answer:
    """Create one record and return the answer."""
    data: dict[str, Any] = {"id": key}
    if template == "TransferRows":
        data |= {"source": "nobody", "target": "nobody", "amount": 1}  # no unique key prevents a second copy
    try:
        client.call("create_record", template, data, timeout=seconds)
    except BedsError as error:
        return Answer(template, key, error.code, bool(error.detail.get("nothing_written")), str(error))
    except Exception as defect:  # noqa: BLE001 — whatever it is, it must not end the load, and the verdict names it
        return Answer(template, key, type(defect).__name__, words=repr(defect))
    return Answer(template, key, OK)


def wait_until_written(settings: Settings, templates: Iterable[str]) -> None:
    """Wait until workers execute writes."""
    deadline = time.monotonic() + PATIENCE
    with Client(settings) as client:
        for template in templates:
            while (answer := create(client, template, f"first-{uuid.uuid4().hex}", 10)).code != OK:
                assert time.monotonic() < deadline, answer
                time.sleep(0.1)


def check(load: Load, stored: Counter[tuple[str, str]], in_doubt: Iterable[str] = ()) -> None:
    """Compare the contents of the databases with the answers to the load.

    Args:
        load: after its end.
        stored: how often each record exists, by template and key.
        in_doubt: the codes after which a record may exist or not.
    """
    told = {(answer.template, answer.key): answer.code for answer in load.answers}
    assert len(told) == len(load.answers)
    doubtful = set(in_doubt)
    lost = sorted(key for key, code in told.items() if code == OK and not stored[key])
    doubled = sorted(key for key, count in stored.items() if count > 1)
    refused = sorted((key, told.get(key)) for key in stored if told.get(key, "never sent") not in {OK, *doubtful})
    wrong: dict[str, list[Any]] = {"lost": lost, "doubled": doubled, "written though refused": refused}
    shown = {what: (len(which), which[:5]) for what, which in wrong.items()}
    assert not any(wrong.values()), f"told {dict(load.told())}; {shown}"


def rows_of(plan: Plan, name: str) -> Counter[tuple[str, str]]:
    """The rows of a load in a MariaDB, with their number.

    Args:
        plan: with its port and the DBA's password.
        name: of the load.
    """
    found: Counter[tuple[str, str]] = Counter()
    connection = MySQLdb.connect(
        host="127.0.0.1", port=plan.mariadb_port, user="beds_dba", passwd=plan.passwords["rel_dba"], db=DATABASE
    )
    with contextlib.closing(connection), connection.cursor() as cursor:
        for template, table in (("SampleRows", "samples"), ("TransferRows", "transfers")):
            cursor.execute(f"SELECT id, COUNT(*) FROM {table} WHERE id LIKE %s GROUP BY id", [f"{name}-%"])
            found.update({(template, key): count for key, count in cursor.fetchall()})
    return found


def audited_of(uri: str, name: str) -> Counter[tuple[str, str]]:
    """The records of a load whose creation is in the audit.

    Args:
        uri: the DBA's.
        name: of the load.
    """
    with MongoClient[dict[str, Any]](uri) as mongo:
        records = mongo[DATABASE].msAudit.find({"record_id": {"$regex": f"^{name}-"}, "outcome": OK})
        return Counter((str(each["template"]), str(each["record_id"])) for each in records)


def documents_of(uri: str, name: str) -> Counter[tuple[str, str]]:
    """The documents of a load that a majority of a MongoDB has.

    Args:
        uri: the DBA's.
        name: of the load.
    """
    with MongoClient[dict[str, Any]](uri) as mongo:
        samples = mongo[DATABASE].get_collection("samples", read_concern=ReadConcern("majority"))
        return Counter(("SampleDocs", str(each["_id"])) for each in samples.find({"_id": {"$regex": f"^{name}-"}}))
