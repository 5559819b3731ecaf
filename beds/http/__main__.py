"""The app-server node as a process: `python -m beds.http`, which `beds http` and the supervisor start."""

from __future__ import annotations

import logging
import sys

from beds.config import load_settings
from beds.config.local_key import with_local_key
from beds.errors import BedsError
from beds.http.server import serve

EX_CONFIG = 78


def main() -> int:
    """Serve until a signal. Returns the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    try:
        settings = load_settings()
        serve(settings.model_copy(update={"http": with_local_key(settings)}))
    except BedsError as error:
        print(f"beds http: {error}", file=sys.stderr)  # noqa: T201
        return EX_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
