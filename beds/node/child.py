"""Runs a program that ends with the supervisor, however that goes: `python -m beds.node.child PID PROGRAM …`.

A process of its own, since nothing may run between fork and exec in a supervisor that has threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of <linux/prctl.h>; it outlives exec."""


def main(parent: int, command: list[str]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(0)  # it went while this started
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
