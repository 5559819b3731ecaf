"""Draws the series of bench.scaling as one SVG, a small plot for each figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

PLOTS = {
    "slots": ("per_second", "waiting_per_second", "slot_mb"),
    "callers": ("per_second", "p50_ms"),
    "body": ("p50_ms",),
    "tickets": ("submit_ms", "list_ms"),
    "templates": ("worker_s", "p50_ms", "slot_mb"),
    "events": ("slot_mb", "client_mb"),
}
LABELS = {
    "per_second": "reads/s",
    "waiting_per_second": "reads/s, 20 ms in the database",
    "slot_mb": "MB of a slot",
    "client_mb": "MB of the client",
    "p50_ms": "p50 of a read, ms",
    "submit_ms": "p50 of submit and wait, ms",
    "list_ms": "p50 of a page of tickets, ms",
    "worker_s": "s until a worker answers",
    "bytes": "bytes of the body",
    "callers": "processes that call",
    "tickets": "stored tickets",
    "templates": "templates",
    "events": "events",
    "slots": "slots",
}
COLUMNS = 3


def draw(found: Mapping[str, Sequence[Mapping[str, float]]], file: Path) -> None:
    """Draw all series into a file.

    Args:
        found: what `bench.scaling.measure` returned.
        file: its name ends with `.svg`.
    """
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "beds", "font.size": 8})
    plots = [(name, figure) for name, figures in PLOTS.items() if name in found for figure in figures]
    rows = -(-len(plots) // COLUMNS)
    page = Figure(figsize=(9, 2.2 * rows), layout="constrained")
    for place, (name, figure) in enumerate(plots):
        axes = page.add_subplot(rows, COLUMNS, place + 1)
        across = next(iter(found[name][0]))
        xs = [point[across] for point in found[name]]
        axes.plot(xs, [point[figure] for point in found[name]], marker="o", color="#1f6f8b")
        if min(xs) > 0 and max(xs) / min(xs) > 20:
            axes.set_xscale("log")
        if name == "body":
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.15 * max(point[figure] for point in found[name]))
        axes.set(xlabel=LABELS[across], ylabel=LABELS[figure])
        axes.grid(visible=True, alpha=0.3)
    page.savefig(file, format="svg", metadata={"Date": None})
