"""The result of one check, at start-up or by `beds doctor`: its subject, its finding and its remedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from beds.errors import BedsError


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """Args:
    name: the subject of the check.
    verdict: its result.
    found: the finding, without secrets.
    remedy: what to do after a failure or a warning.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""

    @property
    def failed(self) -> bool:
        return self.verdict is Verdict.FAILED

    def __str__(self) -> str:
        return f"{self.name}: {self.found}" + (f" → {self.remedy}" if self.remedy else "")

    def to_wire(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}


def ok(name: str, found: str) -> Check:
    return Check(name, Verdict.OK, found)


def failed(name: str, found: str, remedy: str) -> Check:
    return Check(name, Verdict.FAILED, found, remedy)


def warned(name: str, found: str, remedy: str) -> Check:
    """Something to mend, with which the node serves nevertheless."""
    return Check(name, Verdict.WARNING, found, remedy)


def skipped(name: str, why: str) -> Check:
    return Check(name, Verdict.SKIPPED, why)


def of_error(name: str, error: BedsError) -> Check:
    """An error as a failed check."""
    return failed(name, error.message, error.hint)
