"""The peer `direct` of bench.http: a hand-written service over FastAPI that calls the stored objects without a broker.

It runs in an environment of its own, without BEDS: `python -m bench.http_direct PORT PROCESSES`, with the addresses of
the stores and its callers' token in the environment.
"""

from __future__ import annotations

import hmac
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import asyncmy
import uvicorn
from asyncmy.cursors import DictCursor
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, Field
from pymongo import AsyncMongoClient

POOL = 8
"""Connections to MariaDB of one process."""
TOKEN = os.environ.get("BENCH_TOKEN", "")
REL = json.loads(os.environ.get("BENCH_REL", "{}"))
REC_URI, REC_DATABASE = os.environ.get("BENCH_REC_URI", ""), os.environ.get("BENCH_REC_DATABASE", "")


class Notice(BaseModel):
    id: UUID = Field(default_factory=uuid4)
    airport: str = Field(max_length=3)
    title: str = Field(max_length=200)
    status: Literal["open", "closed"]
    severity: int | None = Field(None, ge=1, le=5)
    tags: list[str] | None = None
    details: dict[str, Any] | None = None
    opened: datetime = Field(default_factory=lambda: datetime.now(UTC))
    revision: int = 0


@asynccontextmanager
async def stores(app: FastAPI) -> AsyncIterator[None]:
    app.state.pool = await asyncmy.create_pool(**REL, minsize=1, maxsize=POOL, autocommit=True, charset="utf8mb4")
    app.state.rec = AsyncMongoClient(REC_URI, tz_aware=True, uuidRepresentation="standard")[REC_DATABASE]
    yield
    app.state.pool.close()
    await app.state.rec.client.close()


async def authorized(authorization: Annotated[str, Header()] = "") -> None:
    if not hmac.compare_digest(authorization.encode(), f"Bearer {TOKEN}".encode()):
        raise HTTPException(401)


app = FastAPI(lifespan=stores, dependencies=[Depends(authorized)])


@app.get("/airports/{faa}")
async def airport(faa: str) -> dict[str, Any]:
    async with app.state.pool.acquire() as connection, connection.cursor(DictCursor) as cursor:
        await cursor.execute("CALL airports_by_faa(%s)", [faa])
        row = await cursor.fetchone()
    if row is None:
        raise HTTPException(404)
    return dict(row)


@app.get("/notices/{key}")
async def notice(key: UUID) -> dict[str, Any]:
    rec = app.state.rec
    command = {"find": "notices", "filter": {"_id": key}}
    found = (await rec.command(command, codec_options=rec.codec_options))["cursor"]["firstBatch"]
    if not found:
        raise HTTPException(404)
    return {"id": found[0].pop("_id"), **found[0]}


@app.post("/notices", status_code=201)
async def create(notice: Notice) -> Notice:
    values = notice.model_dump()
    document = {"_id": values.pop("id"), **values}
    rec = app.state.rec
    reply = await rec.command({"insert": "notices", "documents": [document]}, codec_options=rec.codec_options)
    if reply.get("writeErrors"):
        raise HTTPException(409)
    return notice


if __name__ == "__main__":
    port, processes = map(int, sys.argv[1:])
    uvicorn.run("bench.http_direct:app", port=port, workers=processes, loop="uvloop", http="httptools",
                access_log=False, log_level="warning")  # fmt: skip
