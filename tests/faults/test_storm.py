"""All faults, once each, under load: the short form of `make faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

from beds.config import Settings
from beds.stack.stack import Stack
from tests.conftest import wait_for
from tests.faults.storm import FAULTS, Reckoning, Storm, calm, kill_next_process, restart_all_workers, storm

PROCESSES = 22
"""A supervisor, seven parents, fourteen slots."""


@pytest.mark.timeout(600)
def test_trap_7_nothing_is_lost_and_nothing_doubled_in_a_storm(
    project: Path, stack: Stack, settings: Settings, tmp_path: Path
) -> None:
    with storm(project, stack, settings, tmp_path / "storm") as found:
        for fault in FAULTS:
            if fault is not restart_all_workers:
                fault(found)
        reckoning = calm(found, "all", 1)
    assert reckoning.operations > 100
    assert reckoning.is_clean, _told(reckoning)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_rolling_restart_of_all_workers_fails_no_call(
    project: Path, stack: Stack, settings: Settings, tmp_path: Path
) -> None:
    with storm(project, stack, settings, tmp_path / "rolling") as found:
        restart_all_workers(found)
        _sees_all_workers(found)
        reckoning = calm(found, "restart", 1)
    assert reckoning.operations > 50
    assert reckoning.is_clean, _told(reckoning)
    assert reckoning.failed == 0, _told(reckoning)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_each_process_of_a_node_is_killed_and_no_call_is_lost(
    project: Path, stack: Stack, settings: Settings, tmp_path: Path
) -> None:
    """`python -m tests.faults.storm --fault kill_next_process --times 50` is the long form."""
    with storm(project, stack, settings, tmp_path / "kills") as found:
        wait_for(found.is_whole, 60, "the node")
        for _ in range(PROCESSES):
            kill_next_process(found)
        reckoning = calm(found, "kills", PROCESSES)
    assert reckoning.operations > 100
    assert reckoning.is_clean, _told(reckoning)
    assert reckoning.failed == 0, _told(reckoning)


def _sees_all_workers(found: Storm) -> None:
    assert len(found.workers()) == 7


def _told(reckoning: Reckoning) -> str:
    return f"{reckoning}\n" + "\n".join(reckoning.notes)
