"""The pages and files that are served without a caller: the reference of the interface, from shipped files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from beds.http.problems import Problem

STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ADDRESSES = {"/docs": "docs.html"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, a browser sends `Origin: null` with a form
    "Cache-Control": "no-cache",
}


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """Every shipped file by its address, read once; nothing else can be reached."""
    found = {f"/static/{file.name}": (file.read_bytes(), _TYPES[file.suffix]) for file in STATIC.iterdir()}
    return found | {address: found[f"/static/{name}"] for address, name in _ADDRESSES.items()}


def find(request: Request) -> Response | None:
    """The page or file of an address; None if it has none. Raises Problem (405)."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    file = _files().get(path)
    if file is None:
        return None
    if request.method not in ("GET", "HEAD"):
        raise Problem(405, "method_not_allowed", "This address takes GET.", headers={"Allow": "GET"})
    content, kind = file
    return Response(content, headers=HEADERS, media_type=kind)
