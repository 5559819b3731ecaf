"""Rows for the tables of TPC-C: few, and the same in each run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random

WAREHOUSES = 2
DISTRICTS = 4
"""Of each warehouse; the specification has 10."""
CUSTOMERS = 20
"""Of each district, each with one order; the specification has 3,000."""
ITEMS = 50
UNDELIVERED = 6
"""The last orders of each district, about 30 % as in the specification."""
BEGIN = datetime(2024, 1, 1, 8)

Rows = list[tuple[object, ...]]


def tables() -> Iterator[tuple[str, Rows]]:
    """Each table with its rows, in an order that its foreign keys allow."""
    random = Random(1992)
    warehouses = range(1, WAREHOUSES + 1)
    districts = [(w, d) for w in warehouses for d in range(1, DISTRICTS + 1)]
    customers = [(w, d, c) for w, d in districts for c in range(1, CUSTOMERS + 1)]
    prices = [_cents(random, 100, 9999) for _ in range(ITEMS)]

    yield "item", [(i, i * 7, f"item {i}", price, _data(random)) for i, price in enumerate(prices, 1)]
    paid = Decimal(10)
    paid_in_district = paid * CUSTOMERS
    yield (
        "warehouse",
        [(w, f"W{w}", *_address(random), _rate(random), paid_in_district * DISTRICTS) for w in warehouses],
    )
    yield (
        "stock",
        [
            (i, w, random.randint(10, 100), *(f"dist {n:02} of {i}"[:24] for n in range(1, 11)), 0, 0, 0, _data(random))
            for w in warehouses
            for i in range(1, ITEMS + 1)
        ],
    )
    yield (
        "district",
        [(d, w, f"D{w}-{d}", *_address(random), _rate(random), paid_in_district, CUSTOMERS + 1) for w, d in districts],
    )
    yield "customer", [_customer(random, w, d, c, paid) for w, d, c in customers]
    yield "history", [(c, d, w, d, w, BEGIN, paid, f"W{w}    D{w}-{d}") for w, d, c in customers]

    orders: Rows = []
    lines: Rows = []
    for w, d in districts:
        buyers = list(range(1, CUSTOMERS + 1))
        random.shuffle(buyers)
        for number, buyer in enumerate(buyers, 1):
            entered = BEGIN + timedelta(minutes=number)
            delivered = number <= CUSTOMERS - UNDELIVERED
            bought = _lines(random, w, prices)
            carrier = random.randint(1, 10) if delivered else None
            all_local = int(all(supply == w for _, supply, _, _ in bought))
            orders.append((number, d, w, buyer, entered, carrier, len(bought), all_local))
            lines += [
                (number, d, w, n, item, supply, entered if delivered else None, quantity, amount, f"dist {d:02}")
                for n, (item, supply, quantity, amount) in enumerate(bought, 1)
            ]
    yield "orders", orders
    yield "new_order", [row[:3] for row in orders if row[5] is None]
    yield "order_line", lines


def _customer(random: Random, w: int, d: int, c: int, paid: Decimal) -> tuple[object, ...]:
    # A last name is shared by several customers, who are found by it.
    names = ("OE", f"NAME{c % 7}")
    contact = (*_address(random), f"{random.randrange(10**16):016}")
    credit = "BC" if c % 10 == 0 else "GC"
    return (
        c,
        d,
        w,
        f"First{c}",
        *names,
        *contact,
        BEGIN,
        credit,
        50000,
        _rate(random),
        -paid,
        paid,
        1,
        0,
        _data(random),
    )


def _lines(random: Random, w: int, prices: list[Decimal]) -> list[tuple[int, int, int, Decimal]]:
    """The lines of an order: item, supplying warehouse (one in ten is another), quantity, amount."""
    found = []
    for _ in range(random.randint(5, 15)):
        item, quantity = random.randint(1, ITEMS), random.randint(1, 10)
        supply = w if random.random() < 0.9 else w % WAREHOUSES + 1
        found.append((item, supply, quantity, quantity * prices[item - 1]))
    return found


def _address(random: Random) -> tuple[str, ...]:
    number = random.randint(1, 999)
    return (
        f"{number} Main Street",
        f"Floor {number % 9}",
        f"Town {number % 20}",
        "NY",
        f"{random.randint(0, 9999):04}11111",
    )


def _data(random: Random) -> str:
    return f"{random.getrandbits(64):016x}{' ORIGINAL' if random.random() < 0.1 else ''}"


def _rate(random: Random) -> Decimal:
    return Decimal(random.randint(0, 2000)) / 10000


def _cents(random: Random, low: int, high: int) -> Decimal:
    return Decimal(random.randint(low, high)) / 100
