"""The model of `bench.growth`: which part limits the rate of a system, and how rates add up."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from bench.growth import REMEDIES, SIZES, Machines, grown
from bench.growth_model import Costs, Part, System, limits, needed, predict

COSTS = Costs(
    client=0.0003,
    node=0.001,
    rabbitmq=0.0008,
    records=0.0001,
    database=0.0005,
    leader=0.00005,
    service=0.0015,
    wire=4000,
)
AMPLE = System(nodes=4, slots=64, cores=8, clients=64, rabbitmq=3)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"service": 1.0}, Part.SLOTS),
        ({"node": 1.0}, Part.NODES),
        ({"client": 1.0}, Part.CLIENTS),
        ({"rabbitmq": 1.0}, Part.RABBITMQ),
        ({"leader": 1.0}, Part.LEADER),
        ({"records": 1.0}, Part.RECORDS),
        ({"database": 1.0}, Part.DATABASE),
        ({"wire": 1e9}, Part.NETWORK),
    ],
)
def test_the_part_whose_cost_dominates_is_the_bottleneck(change: dict[str, float], part: Part) -> None:
    assert predict(replace(COSTS, **change), AMPLE).part is part


def test_slots_add_up_while_events_wait() -> None:
    one = predict(COSTS, System(nodes=1, slots=2, wait=0.25))
    three = predict(COSTS, System(nodes=3, slots=2, wait=0.25))
    assert one.part is three.part is Part.SLOTS
    assert one.rate == pytest.approx(2 / 0.2515)
    assert three.rate == pytest.approx(3 * one.rate)


def test_more_nodes_carry_no_more_when_another_part_is_the_limit() -> None:
    few, many = (predict(COSTS, System(nodes=nodes, slots=64, clients=nodes * 8)) for nodes in (30, 100))
    assert few.part is many.part is Part.RECORDS
    assert few.rate == many.rate


def test_on_one_machine_all_parts_share_its_cores() -> None:
    shared = System(nodes=3, slots=2, cores=2, is_shared=True)
    assert predict(COSTS, shared).part is Part.MACHINE
    assert predict(COSTS, shared).rate == pytest.approx(2 / COSTS.cpu)
    assert predict(COSTS, replace(shared, wait=0.25)).part is Part.SLOTS
    assert Part.RABBITMQ not in limits(COSTS, shared)


def test_machines_of_rabbitmq_share_its_cost() -> None:
    one, three = (limits(COSTS, replace(AMPLE, rabbitmq=count)) for count in (1, 3))
    assert three[Part.RABBITMQ] == pytest.approx(3 * one[Part.RABBITMQ])
    assert three[Part.NETWORK] == pytest.approx(3 * one[Part.NETWORK])
    assert three[Part.LEADER] == one[Part.LEADER]


def test_a_cost_of_zero_is_no_limit() -> None:
    assert predict(replace(COSTS, records=0.0), AMPLE).part is not Part.RECORDS


def test_what_is_needed_removes_the_bottleneck() -> None:
    system = replace(AMPLE, nodes=10, clients=80)
    found = needed(COSTS, system)
    goal = min(limits(COSTS, system)[part] for part in (Part.SLOTS, Part.NODES))
    assert found[Part.RECORDS] > 1
    assert Part.CLIENTS not in found
    for part, count in found.items():
        assert count * limits(COSTS, system)[part] >= goal > (count - 1) * limits(COSTS, system)[part]


def test_growth_names_a_limit_and_a_remedy_for_each_size() -> None:
    operations = ("fetch-rel", "create-rel", "fetch-rec", "create-rec")
    rows = list(grown(dict.fromkeys(operations, COSTS), Machines(cores=8, slots=16, wait=0.02)))
    assert set(REMEDIES) == set(Part)
    assert len(rows) == len(operations) * 2 * len(SIZES)
    for few, many in itertools.pairwise(rows):
        if few["nodes"] < many["nodes"]:
            assert few["per_second"] <= many["per_second"]
    slow = [row["limit"] for row in rows if row["wait_ms"] and row["operation"] == "fetch-rel"]
    assert slow[0] == Part.SLOTS
    assert slow[-1] == Part.RECORDS
