"""docker/ without an engine: what can be said of its files by reading them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from beds.config.settings import Settings
from beds.domain.event import CALGON
from beds.transport.topology import CRUD_QUEUES, LOG_QUEUES
from tests.conftest import ROOT

DOCKER = ROOT / "docker"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file with its anchors and merges resolved. Variables stay as they are: no engine is needed for that."""
    parsed: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return parsed


def test_there_is_one_worker_for_each_queue_and_flower(compose: dict[str, Any]) -> None:
    commands = [" ".join(s.get("command") or []) + " " for s in compose["services"].values()]
    for queue in (*CRUD_QUEUES, CALGON, ",".join(LOG_QUEUES)):
        assert sum(f"-Q {queue} " in command for command in commands) == 1
    assert any("flower" in command for command in commands)


def test_every_variable_is_a_known_key(compose: dict[str, Any]) -> None:
    variables = {n for s in compose["services"].values() for n in s.get("environment", {}) if n.startswith("BEDS_")}
    assert variables
    for variable in variables:
        model: Any = Settings
        for part in variable.removeprefix("BEDS_").lower().split("__"):
            field = model.model_fields.get(part) or model.model_fields[part + "_"]
            annotation = field.annotation
            model = next((a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")), annotation)


def test_no_file_holds_a_password_and_all_are_named() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+):\?\}", text))
    example = dict(line.split("=", 1) for line in (DOCKER / ".env.example").read_text().splitlines() if "=" in line)
    assert used == set(example)
    assert set(example.values()) == {"change-me"}


def test_the_image_runs_as_nobody_special_and_copies_what_exists() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert re.search(r"^USER beds$", text, re.MULTILINE)
    for sources in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
