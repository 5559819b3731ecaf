"""One line of a start-up check or of the doctor's: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from beds.errors import BedsError


class Verdict(StrEnum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """Args:
    name: what was looked at.
    verdict: whether it is as it should be.
    found: what was found, without a secret.
    remedy: what to do, where it is not.
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


def skipped(name: str, why: str) -> Check:
    return Check(name, Verdict.SKIPPED, why)


def of_error(name: str, error: BedsError) -> Check:
    """What an error says, as a failed check."""
    return failed(name, error.message, error.hint)
