"""Runs a program that gets SIGTERM however the supervisor ends: `python -m beds.node.child PID PROGRAM …`.

This is a separate program, since a supervisor with threads must not run Python code between fork and exec.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of <linux/prctl.h>. The setting survives exec."""


def main(parent: int, command: list[str]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(0)  # the supervisor ended while this process started
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
