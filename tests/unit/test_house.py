"""Rules of the repository: opening lines of files, imports of a client, lineage, the in-memory client."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from beds.domain.identity import ObjectId, uuid7
from beds.domain.lineage import Lineage, guid_of
from beds.domain.reply import Page, Response
from beds.errors import DuplicateKey, UnknownTemplate
from beds.templates.registry import TemplateRegistry
from beds.testing import MemoryClient
from tests.conftest import ROOT


def test_each_module_says_what_it_is_for() -> None:
    for file in (ROOT / "beds").rglob("*.py"):
        assert file.read_text().startswith('"""'), f"{file} does not say what it is for"


@pytest.mark.parametrize("module", ["beds", "beds.client", "beds.cli.main", "beds.cli.call", "beds.worker.crud"])
def test_a_client_loads_no_driver(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('pymongo', 'bson', 'MySQLdb') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_uuid7_is_one_and_in_order() -> None:
    made = [uuid7() for _ in range(1000)]
    assert all(u.version == 7 and u.variant == uuid.RFC_4122 for u in made)
    assert len(set(made)) == 1000
    assert [u.int >> 80 for u in made] == sorted(u.int >> 80 for u in made)


def test_object_ids_are_checked() -> None:
    assert ObjectId.generate().hex < ObjectId("f" * 24).hex
    for bad in ("", "0" * 23, "G" * 24, "A" * 24, "0" * 24 + "\n", None):
        with pytest.raises(ValueError, match="24"):
            ObjectId(bad)  # type: ignore[arg-type]


def test_lineage_goes_one_deeper_with_each_child() -> None:
    root = Lineage.root("ms", "production")
    child = root.child("db", "production")
    grandchild = child.child("db", "production")
    assert (root.parent_id, root.depth, root.root_id) == ("", 0, root.event_id)
    assert (child.parent_id, child.depth, child.root_id) == (root.event_id, 1, root.event_id)
    assert (grandchild.parent_id, grandchild.depth) == (child.event_id, 2)
    assert guid_of(child.event_id) == child.guid
    assert Lineage.from_header(child.to_header(), child.guid) == child


def test_a_foreign_header_becomes_a_root() -> None:
    for junk in ({}, {"depth": -1}, {"depth": True, "node": 5, "parent_id": None}):
        found = Lineage.from_header(junk, "g")
        assert (found.depth, found.parent_id, found.root_id) == (0, "", "unknown.unknown.g")


def test_the_memory_client_stands_in_for_the_real_one() -> None:
    templates = TemplateRegistry.from_folder(ROOT / "schema")
    seen = {}

    def nearest(records, args):  # type: ignore[no-untyped-def]
        seen.update(args)
        return list(records.values())

    client = MemoryClient(templates, {"airports_nearest": nearest})
    airport = {"faa": "ZZZ", "name": "A", "lat": 1.0, "lon": 2.0, "alt": 3, "tz": -5, "dst": "A"}
    assert client.call("create_record", "Airports", airport) == Response("ZZZ", 1, {"faa": "ZZZ"})
    with pytest.raises(DuplicateKey):
        client.call("create_record", "Airports", airport)
    page = client.call("fetch_records", "Airports", {"lat": 0.0, "lon": 0.0}, using="nearest")
    assert isinstance(page, Page)
    assert page[0]["name"] == "A"
    assert seen == {"lat": 0.0, "lon": 0.0}
    with pytest.raises(UnknownTemplate):
        client.call("create_record", "Nothing", {})


def test_no_file_names_a_path_of_a_machine() -> None:
    for folder in ("beds", "docs", "docker", "schema", "tools", "bench"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix in (".py", ".md", ".toml", ".sql", ".json", ".yaml", ".sh"):
                assert "/work/" not in file.read_text(), file
    assert Path(ROOT / "README.md").exists()
