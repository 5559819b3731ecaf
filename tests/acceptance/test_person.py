"""What a person gets in the hand: files of records, the newest tickets, shells of the stack, a repaired schema."""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.stack.stack import Stack
from tests.conftest import run

HALF = "V0990__half.sql"


def test_a_shell_completes_commands(project: Path) -> None:
    assert "complete" in run(project, "beds", "completion", "bash").stdout
    asked = {"_BEDS_COMPLETE": "bash_complete", "COMP_WORDS": "beds stack pro", "COMP_CWORD": "2"}
    assert run(project, "beds", env=asked).stdout.split() == ["plain,promote"]


def call(project: Path, *arguments: str) -> str:
    done = run(project, "beds", "call", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def text(project: Path, workers: None) -> str:
    """A text that five records have."""
    name = f"person-{uuid.uuid4().hex[:8]}"
    for number in range(5):
        call(
            project, "SampleRows.create_record", f"id={name}-{number}", f"text={name}", "price=1.10",
            "moment=2013-07-01T12:00:00Z", "token=01a20d9f-cec8-76f3-8b35-c900cdc2ad61", '--json',
        )  # fmt: skip
    return name


def test_json_is_plain_and_the_wire_form_is_a_choice(project: Path, text: str) -> None:
    asked = ("SampleRows.fetch_records", "--using", "by_id", f"id={text}-0", "--json")
    (record,) = json.loads(call(project, *asked))["records"]
    assert record["moment"] == "2013-07-01T12:00:00+00:00"
    assert record["price"] == "1.1000"
    assert record["token"] == "01a20d9f-cec8-76f3-8b35-c900cdc2ad61"
    (record,) = json.loads(call(project, *asked, "--wire"))["records"]
    assert record["moment"] == {"$datetime": "2013-07-01T12:00:00+00:00"}
    assert record["price"] == {"$decimal": "1.1000"}


def test_all_pages_as_lines_and_as_csv(project: Path, text: str) -> None:
    asked = ("SampleRows.fetch_records", "--using", "by_text", f"text={text}", "--limit", "2")
    ids = [f"{text}-{number}" for number in range(5)]
    lines = call(project, *asked, "--all", "--ndjson").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids
    rows = list(csv.DictReader(io.StringIO(call(project, *asked, "--all", "--csv"))))
    assert [row["id"] for row in rows] == ids
    assert rows[0]["price"] == "1.1000"
    assert rows[0]["whole"] == ""
    page = json.loads(call(project, *asked, "--all", "--json"))
    assert ([record["id"] for record in page["records"]], page["cursor"]) == (ids, "")
    assert len(call(project, *asked, "--ndjson").splitlines()) == 2


def test_formats_that_mean_nothing_are_refused(project: Path, text: str) -> None:
    for arguments in (
        ("SampleRows.create_record", "id=x", "--csv"),
        ("SampleRows.fetch_records", "--using", "by_id", "id=x", "--json", "--ndjson"),
    ):
        assert run(project, "beds", "call", *arguments).returncode == 2


def test_the_newest_tickets_come_first_whatever_their_state(project: Path, workers: None) -> None:
    guids = []
    for id_ in ("", "nobody-has-this"):
        operation = ("fetch_records", "--using", "by_id") if not id_ else ("delete_record",)
        done = run(project, "beds", "submit", f"SampleRows.{operation[0]}", *operation[1:], f"id={id_ or 'x'}")
        guids.append(done.stdout.strip())
        run(project, "beds", "ticket", guids[-1], "--wait")
    found = json.loads(run(project, "beds", "tickets", "--limit", "2", "--json").stdout)["records"]
    assert [(ticket["guid"], ticket["state"]) for ticket in found] == [(guids[1], "FAILURE"), (guids[0], "SUCCESS")]
    older = json.loads(run(project, "beds", "tickets", "--limit", "1", "--cursor", _cursor(project), "--json").stdout)[
        "records"
    ]
    assert older[0]["guid"] == guids[0]


def _cursor(project: Path) -> str:
    return str(json.loads(run(project, "beds", "tickets", "--limit", "1", "--json").stdout)["cursor"])


@pytest.mark.parametrize(
    ("role", "user"), [("dba", "beds_dba@127.0.0.1"), ("worker", "beds_broker@127.0.0.1"), ("root", "@localhost")]
)
def test_a_shell_of_mariadb_opens_as_each_role(project: Path, stack: Stack, role: str, user: str) -> None:
    done = run(project, "beds", "stack", "sql", "--as", role, "-N", "-e", "SELECT CURRENT_USER()")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(user)


def test_shells_have_no_password_in_their_command_line(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mongosh = tmp_path / "mongosh"
    mongosh.write_text("#!/bin/sh\n")
    mongosh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for role in ("dba", "worker", "root"):
        for command, environment in (stack.sql_shell(role), stack.mongo_shell(role)):
            words = " ".join(command)
            assert not any(password in words for password in stack.plan.passwords.values())
            assert environment or role == "root"


@pytest.fixture
def half(project: Path, stack: Stack) -> Iterator[Path]:
    """A file whose third statement fails."""
    file = project / "schema" / "rel" / HALF
    file.write_text(
        "CREATE TABLE half_one (id INT PRIMARY KEY);\nCREATE TABLE half_two (id INT PRIMARY KEY);\n"
        "ALTER TABLE half_missing ADD COLUMN more INT;\n"
    )
    yield file
    file.unlink()
    undo = f"DROP TABLE IF EXISTS half_one, half_two; DELETE FROM beds_schema_history WHERE file = '{HALF}'"
    assert run(project, "beds", "stack", "sql", "-e", undo).returncode == 0


def test_a_half_applied_file_is_shown_undone_and_applied_again(project: Path, half: Path) -> None:
    assert run(project, "beds", "schema", "repair").stdout == "nothing to repair\n"
    failed = run(project, "beds", "schema", "apply")
    assert "half_missing' doesn't exist" in failed.stderr
    refused = run(project, "beds", "schema", "apply")
    assert refused.returncode == 78
    assert "beds schema repair" in refused.stderr
    shown = run(project, "beds", "schema", "repair")
    assert shown.returncode == 1
    assert f"{HALF}: 2 statements were executed" in shown.stdout
    assert "half_missing' doesn't exist" in shown.stdout
    assert run(project, "beds", "stack", "sql", "-e", "DROP TABLE half_one, half_two").returncode == 0
    assert run(project, "beds", "schema", "repair", "--again", HALF).returncode == 0
    half.write_text("CREATE TABLE half_one (id INT PRIMARY KEY);\n")
    applied = run(project, "beds", "schema", "apply")
    assert applied.returncode == 0, applied.stderr
    assert run(project, "beds", "schema", "diff").returncode == 0


def test_a_half_applied_file_that_a_person_completed_counts_as_applied(project: Path, half: Path) -> None:
    run(project, "beds", "schema", "apply")
    assert run(project, "beds", "schema", "repair", "--done", HALF).returncode == 0
    assert run(project, "beds", "schema", "diff").returncode == 0
    wrong = run(project, "beds", "schema", "repair", "--done", HALF)
    assert wrong.returncode == 78
    assert "did not fail half-way" in wrong.stderr
