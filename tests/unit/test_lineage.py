"""The place of an event in the tree of a request, and its trace context."""

from __future__ import annotations

from typing import Any

import pytest

from beds.domain.lineage import Lineage
from beds.domain.trace import Trace, spawn, trace_context, tracing
from beds.errors import WrongType

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_trace_context_is_that_of_the_root_and_all_below_it() -> None:
    with trace_context(TRACE):
        root = spawn("ms", "test")
    assert root.traceparent == TRACE
    assert Lineage.from_header(root.to_header(), root.guid) == root
    with tracing(Trace(root)):
        assert spawn("other", "test").traceparent == TRACE
    assert spawn("ms", "test").traceparent == ""


@pytest.mark.parametrize(
    "wrong",
    ["", "01" + TRACE[2:], TRACE + "-more", TRACE.upper(), TRACE + "\n", f"00-{'0' * 32}-{'1' * 16}-01", 7],
)
def test_what_is_no_trace_context_is_refused_here_and_dropped_from_a_message(wrong: Any) -> None:
    with pytest.raises(WrongType), trace_context(wrong):
        pass
    header = Lineage.root("ms", "test").to_header() | {"traceparent": wrong}
    assert Lineage.from_header(header, "x").traceparent == ""
