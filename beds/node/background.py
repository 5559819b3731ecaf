"""A node's workers in the background, for `beds node start` and `beds up`."""

from __future__ import annotations

import sys
from pathlib import Path

from beds.config import Settings
from beds.errors import StackError
from beds.node import status, supervisor
from beds.node.daemon import Daemon, lock_holder

START_SECONDS = 180.0
"""Timeout for a node to serve. Each pool imports Celery and connects, which takes long on a small machine."""


def start_node(daemon: Daemon, settings: Settings, config: str | None) -> bool:
    """Start this node's workers in the background and wait until they serve. False when they ran already.

    Raises:
        ConfigurationError: the node has nothing to run.
        StackError: they ended, or did not come up; shows the end of their log.
    """
    if daemon.process():
        return False
    if lock_holder(supervisor.lock_file(settings)) is not None:
        raise supervisor.already_runs(settings)
    state = supervisor.state_file(settings)
    state.unlink(missing_ok=True)
    option = ["--config", str(Path(config).resolve())] if config else []
    daemon.start([sys.executable, "-m", "beds.cli", *option, "node", "run"], cwd=settings.root)
    try:
        daemon.wait_until(lambda: status.is_serving(settings), START_SECONDS)
        if status.is_refused(settings):
            raise StackError(f"no worker can start:\n{daemon.tail()}", hint=f"the whole log: {daemon.log}")
    except StackError as error:
        waiting = [pool.pool for pool in status.pools(settings, counted=False) if pool.state not in supervisor.SETTLED]
        if waiting:
            error.message = f"not ready, so the node was stopped again: {', '.join(waiting)}; {error.message}"
        daemon.stop()  # a node that never served would otherwise restart its workers for ever
        raise
    return True
