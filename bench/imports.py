"""Measures how long `import beds` takes, beside Celery, pydantic and an interpreter that imports nothing.

Each run is a new process. In each round every side runs once with compiled modules and once from source, by turns. The
processes start without `site`, so that a module counts where it is imported. "imports" is the sum of what
`python -X importtime` reports for the statement; "process" is the processor time from start to end.

    python -m bench.imports [--rounds 5] [--heaviest 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SIDES: Mapping[str, str] = {
    "python": "pass",
    "beds": "import beds",
    "beds, first use": "import beds; beds.call",
    "celery": "from celery import Celery",
    "pydantic": "from pydantic import BaseModel",
    "beds --help": "sys.argv = ['beds', '--help']; from beds.cli.main import main; main()",
    "celery --help": "sys.argv = ['celery', '--help']; from celery.bin.celery import main; main()",
}
"""The statement of each side. `import celery` alone would load nothing: Celery imports its names at their first use."""
MODES = ("compiled", "source")
BEGIN = "-- the statement begins --"


@dataclass(frozen=True)
class Run:
    """One process."""

    process_ms: float
    """Processor time."""
    self_ms: Mapping[str, float]
    """Milliseconds of each imported module without what it imports itself."""

    @property
    def imports_ms(self) -> float:
        return sum(self.self_ms.values())

    def heaviest(self, count: int) -> dict[str, float]:
        """Milliseconds of the top-level packages that took longest."""
        packages: Counter[str] = Counter()
        for module, ms in self.self_ms.items():
            packages[module.partition(".")[0]] += ms  # type: ignore[assignment]
        return dict(packages.most_common(count))


def run(statement: str, mode: str) -> Run:
    """Start a process for a statement, and wait for its end.

    Raises:
        CalledProcessError: the statement failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as empty:
        # -B writes no compiled modules; none are found under an empty prefix.
        cache = ["-B", "-X", f"pycache_prefix={empty}"] if mode == "source" else []
        done = subprocess.run(
            [sys.executable, "-S", *cache, "-X", "importtime", "-c", f"import sys; print({BEGIN!r}, file=sys.stderr)\n"
             f"{statement}"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(spent * 1000, _self_ms(done.stderr.partition(BEGIN)[2]))


def _self_ms(report: str) -> dict[str, float]:
    """The first column of `-X importtime`, by module."""
    rows = [line.removeprefix("import time:").split("|") for line in report.splitlines() if line.count("|") == 2]
    return {name.strip(): int(own) / 1000 for own, _, name in rows}


def compare(rounds: int, heaviest: int, report: Callable[[str], None]) -> dict[str, Any]:
    runs: dict[str, dict[str, list[Run]]] = {side: {mode: [] for mode in MODES} for side in SIDES}
    for statement in SIDES.values():
        run(statement, "compiled")  # compiles what was not yet compiled
    for number in range(rounds):
        for side, statement in SIDES.items():
            for mode in MODES if number % 2 else reversed(MODES):
                runs[side][mode].append(run(statement, mode))
        report(f"round {number + 1} of {rounds}")
    return {
        "rounds": rounds, "python": sys.version.split()[0],
        "sides": {side: {mode: _figures(of) for mode, of in modes.items()} for side, modes in runs.items()},
        "heaviest_ms": {
            side: sorted(modes["compiled"], key=lambda r: r.imports_ms)[rounds // 2].heaviest(heaviest)
            for side, modes in runs.items()
        },
    }  # fmt: skip


def _figures(runs: list[Run]) -> dict[str, float]:
    imports = [each.imports_ms for each in runs]
    return {
        "imports_ms": statistics.median(imports),
        "imports_ms_min": min(imports),
        "imports_ms_max": max(imports),
        "process_ms": statistics.median(each.process_ms for each in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side and mode; the median counts")
    parser.add_argument("--heaviest", type=int, default=5, help="packages to list for each side")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args()
    found = compare(options.rounds, options.heaviest, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for side, modes in found["sides"].items():
        for mode, ms in modes.items():
            print(f"{side:16} {mode:8} imports {ms['imports_ms']:6.1f} ms ({ms['imports_ms_min']:.1f} to "
                  f"{ms['imports_ms_max']:.1f}), process {ms['process_ms']:6.1f} ms")  # fmt: skip
    for side, packages in found["heaviest_ms"].items():
        print(f"{side:16} " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in packages.items()))


if __name__ == "__main__":
    main()
