"""Sample queries and a document's life, each a few operations through BEDS."""

from __future__ import annotations

from uuid import UUID

from beds.client.client import Client
from beds.domain.reply import Record


def busiest_routes(client: Client) -> list[Record]:
    """The ten routes with the most departures."""
    return list(client.template("Flights").fetch_records("busiest_routes", limit=10))


def weather_at_worst_delay(client: Client, airport: str = "JFK") -> tuple[Record, Record]:
    """The flight with the worst delay at departure, from MariaDB, and the weather at its hour, from MongoDB."""
    (flight,) = client.template("Flights").fetch_records("most_delayed", {"origin": airport}, limit=1)
    (weather,) = client.template("Weather").fetch_records("at", {"origin": airport, "time_hour": flight["time_hour"]})
    return flight, weather


def life_of_a_notice(client: Client) -> list[str]:
    """Create, update, read and delete a document. Returns a line for each step."""
    notices = client.template("Notices")
    made = notices.create_record(
        {"airport": "JFK", "title": "Snow on runway 4L", "status": "open", "severity": 2, "details": {"inches": 3}}
    )
    seen: list[str] = [f"created  {made.record_id}"]
    key = UUID(made.record_id)
    amended = notices.update_record({"id": key, "severity": 4, "details": {"inches": 9}})
    seen.append(f"updated  severity {amended.record['severity']}, revision {amended.record['revision']}")
    (read,) = notices.fetch_records("by_id", {"id": key})
    seen.append(f"read     {read['title']!r}, details {read['details']}")
    notices.delete_record(key)
    left = len(notices.fetch_records("by_id", {"id": key}))
    seen.append(f"deleted  {left} left")
    return seen
