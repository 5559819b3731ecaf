"""Responses that fail after they have begun."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from beds.errors import CallTimeout
from beds.http import operations
from beds.http.application import Application, BrokenResponse
from tests.unit.http.conftest import ALL, as_caller

NOTICE = {"airport": "JFK", "title": "Snow", "status": "open"}


@pytest.mark.parametrize("kind", ["application/x-ndjson", "text/csv"])
def test_a_download_that_fails_is_broken_off_and_counted_once(
    app: Application, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = 0
    page_of = operations._page

    async def failing(*arguments: Any) -> Any:
        nonlocal pages
        pages += 1
        if pages == 3:
            raise CallTimeout("no reply")
        return await page_of(*arguments)

    monkeypatch.setattr(operations, "_page", failing)
    with TestClient(app, headers=as_caller(ALL)) as web:
        web.post("/v1/Notices:batch", json=[NOTICE] * 50)
        with pytest.raises(BrokenResponse):
            web.get("/v1/Notices:open_at?airport=JFK&limit=10", headers={"Accept": kind})
    counted = {
        (sample.labels["what"], sample.labels["status"]): sample.value
        for metric in app.node.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "beds_http_requests_total"
    }
    assert counted == {("Notices:batch", "200"): 1, ("Notices:open_at", "200"): 1}
    assert app.node.limits.in_flight == 0
