"""Damaged state files of the local stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beds.errors import StackError
from beds.node.daemon import Daemon
from beds.stack.plan import USERS, load_plan
from beds.stack.stack import Stack

PASSWORDS = dict.fromkeys(USERS, "x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"base": 24000}',
        '{"base": 24000, "passwords": {}}',
        json.dumps({"base": 10**30, "passwords": PASSWORDS}),
        json.dumps({"base": -5, "passwords": PASSWORDS}),
        '{"base": 1e999, "passwords": {}}',
    ],
)
def test_a_damaged_plan_names_the_way_out_which_works(tmp_path: Path, text: str) -> None:
    folder = tmp_path / ".beds"
    folder.mkdir()
    (folder / "stack.json").write_text(text)
    with pytest.raises(StackError, match="cannot be read") as caught:
        load_plan(folder)
    assert "down --wipe" in caught.value.hint
    assert Stack.down(folder, wipe=True) == []
    assert not folder.exists()


def test_a_lost_plan_is_not_made_up_beside_its_data(tmp_path: Path) -> None:
    (tmp_path / "mariadb").mkdir()
    (tmp_path / "mariadb" / ".made").touch()
    with pytest.raises(StackError, match="passwords of mariadb"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"pid": -1, "started": 1}', '{"pid": 1e999, "started": 1}', '{"pid": 1}']
)
def test_a_damaged_pid_file_counts_as_none(tmp_path: Path, text: str) -> None:
    daemon = Daemon("thing", tmp_path)
    (tmp_path / "thing.pid").write_text(text)
    assert daemon.process() is None
    assert daemon.stop() is False
