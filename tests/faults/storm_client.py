"""One client of a storm: submits non-idempotent operations until it shall stop, and records each answer.

    python -m tests.faults.storm_client NAME FILE

It writes a line before and after each operation, so an operation that a kill interrupts is on record. It stops when a
file `stop` exists beside FILE.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from beds.client.call import Call
from beds.client.client import Client
from beds.errors import BedsError

ANSWER_SECONDS = 90.0
PAUSE = 0.03


def main() -> None:
    name, file = sys.argv[1], Path(sys.argv[2])
    stop = file.parent / "stop"
    client = Client()
    number = 0
    with file.open("a", buffering=1) as out:

        def note(**what: Any) -> None:
            out.write(json.dumps(what) + "\n")

        while not stop.exists():
            number += 1
            kind, call = _operation(name, number)
            with_ticket = random.random() < 0.5
            event = client.event(call, ticket=with_ticket, timeout=ANSWER_SECONDS)
            note(
                event=event.lineage.event_id,
                kind=kind,
                id=call.data["id"],
                amount=call.data["amount"],
                ticket=with_ticket,
            )
            begun = time.monotonic()
            deadline = begun + ANSWER_SECONDS
            try:
                if with_ticket:
                    client.submit_event(event, deadline)
                    told = "confirmed"
                else:
                    client.answer(client.send(event, deadline), deadline)
                    told = "ok"
            except BedsError as error:
                told = error.code
            note(done=event.lineage.event_id, told=told, seconds=time.monotonic() - begun)
            time.sleep(PAUSE * random.random())


def _operation(name: str, number: int) -> tuple[str, Call]:
    amount = random.randint(1, 9)
    match number % 3:
        case 0:
            return "rows", Call("update_record", "AccountRows", {"id": f"{name}-a", "amount": amount})
        case 1:
            return "docs", Call("update_record", "AccountDocs", {"id": f"{name}-a", "amount": amount})
        case _:
            data = {"id": f"{name}-{number}", "source": f"{name}-a", "target": f"{name}-b", "amount": amount}
            return "transfer", Call("create_record", "TransferRows", data)


if __name__ == "__main__":
    main()
