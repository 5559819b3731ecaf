"""The application's side of the domains, in memory: no server is needed."""

from pathlib import Path

import pytest

from beds.domain.reply import Page
from beds.errors import DuplicateKey, MissingField
from beds.templates.registry import TemplateRegistry
from beds.testing import MemoryClient

BOOK = {"isbn": "9780141439518", "title": "Pride and Prejudice", "copies": 3}


@pytest.fixture
def client() -> MemoryClient:
    return MemoryClient(TemplateRegistry.from_folder(Path(__file__).parent.parent / "schema"))


def test_a_book_is_found_by_its_isbn(client: MemoryClient) -> None:
    client.call("create_record", "Books", BOOK)
    page = client.call("fetch_records", "Books", {"isbn": BOOK["isbn"]}, using="by_isbn")
    assert isinstance(page, Page)
    assert page.records == (BOOK,)


def test_the_same_book_is_added_once(client: MemoryClient) -> None:
    client.call("create_record", "Books", BOOK)
    with pytest.raises(DuplicateKey):
        client.call("create_record", "Books", BOOK)


def test_a_book_has_a_title(client: MemoryClient) -> None:
    with pytest.raises(MissingField):
        client.call("create_record", "Books", {"isbn": "x"})
