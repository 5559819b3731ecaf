"""`beds lineage`: how a tree is drawn."""

from __future__ import annotations

import click

from beds.cli.lineage import _below, _line
from beds.client.lineage import Node


def _node(guid: str, kind: str, *children: Node, **record: object) -> Node:
    return Node(f"n.test.{guid}", "", 0, kind, record, list(children))


def test_each_node_is_a_line_under_its_parent() -> None:
    first = _node("a", "event", _node("b", "call", name="p", store="rel", rows=3, outcome="ok"), name="T.fetch_records")
    tree = _node("r", "event", first, _node("c", "unknown"), name="root", outcome="ok", duration_ms=1.25)
    drawn = [click.unstyle(line).rstrip() for line in (_line(tree), *_below(tree))]
    assert drawn[0].startswith("root  ok 1.2 ms")
    assert drawn[1].startswith("├── T.fetch_records")
    assert drawn[2].startswith("│   └── rel p  ok  3 rows")
    assert drawn[3] == "└── c: no record of it (yet)"


def test_escape_sequences_of_clients_do_not_reach_the_terminal() -> None:
    line = _line(_node("a", "log", name="\x1b[31mred", level="INFO\x1b]0;x\x07", logger="\x1b[2J"))
    assert "\x1b" not in click.unstyle(line)
    assert "\x07" not in line
