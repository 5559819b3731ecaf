"""The error tree; every error of each driver is mapped to it."""

from __future__ import annotations

import pickle
from typing import Any

import MySQLdb
import pytest
from MySQLdb.constants import CR, ER
from pymongo import errors as mongo

from beds import errors
from beds.adapters.mariadb.errors import _BY_CODE as MARIADB_CODES
from beds.adapters.mariadb.errors import SIGNALS
from beds.adapters.mariadb.errors import translate as from_mariadb
from beds.adapters.mongo.errors import from_server
from beds.adapters.mongo.errors import translate as from_mongo
from beds.adapters.store import is_harmless

CLASSES = sorted(errors.BY_CODE.items())


def test_every_class_has_a_code_of_its_own() -> None:
    def count(cls: type[errors.BedsError]) -> int:
        return 1 + sum(count(child) for child in cls.__subclasses__())

    assert len(CLASSES) == count(errors.BedsError)


def test_the_tree_at_the_top_of_the_file_is_complete() -> None:
    assert errors.__doc__
    for cls in errors.BY_CODE.values():
        assert cls.__name__ in errors.__doc__, cls


@pytest.mark.parametrize(("code", "cls"), CLASSES)
def test_an_error_survives_the_wire_and_a_pickle(code: str, cls: type[errors.BedsError]) -> None:
    error = cls("what", detail={"field": "x"}, hint="so", event_id="n.e.g")
    for copy in (errors.from_wire(error.to_wire()), pickle.loads(pickle.dumps(error))):
        assert type(copy) is cls
        assert (copy.message, copy.detail, copy.hint, copy.event_id) == ("what", {"field": "x"}, "so", "n.e.g")
        assert copy.retryable == error.retryable


def test_an_unknown_code_arrives_as_remote_error() -> None:
    error = errors.from_wire({"code": "from_the_future", "message": "m", "retryable": True})
    assert isinstance(error, errors.RemoteError)
    assert (error.remote_code, error.retryable) == ("from_the_future", True)
    for junk in ({}, {"detail": 5}, {"code": None}):
        assert isinstance(errors.from_wire(junk), errors.RemoteError)


@pytest.mark.parametrize(
    ("code", "message", "cls", "field"),
    [
        (ER.DUP_ENTRY, "Duplicate entry 'ZZ' for key 'PRIMARY'", errors.DuplicateKey, ""),
        (ER.DUP_ENTRY, "Duplicate entry 'ZZ' for key 'one_flight'", errors.DuplicateKey, "one_flight"),
        (
            ER.NO_REFERENCED_ROW_2,
            "Cannot add or update a child row: a foreign key constraint fails (`b`.`f`, CONSTRAINT `c` FOREIGN KEY "
            "(`carrier`) REFERENCES `airlines` (`carrier`))",
            errors.ForeignKeyViolation,
            "carrier",
        ),
        (1292, "Incorrect uuid value: 'x' for column ``.``.`p_token` at row 0", errors.WrongType, "token"),
        (ER.DATA_TOO_LONG, "Data too long for column 'name' at row 1", errors.TooLong, "name"),
        (ER.BAD_NULL_ERROR, "Column 'name' cannot be null", errors.MissingField, "name"),
        (ER.WARN_DATA_OUT_OF_RANGE, "Out of range value for column 'alt' at row 1", errors.OutOfRange, "alt"),
        (4025, "CONSTRAINT `lat_ok` failed for `b`.`a`", errors.OutOfRange, "lat_ok"),
    ],
)
def test_mariadb_errors_name_the_field(code: int, message: str, cls: type[errors.BedsError], field: str) -> None:
    error = from_mariadb(MySQLdb.OperationalError(code, message))
    assert type(error) is cls
    assert error.detail["field"] == field


def test_a_signal_keeps_the_dbas_words_and_state() -> None:
    error = from_mariadb(MySQLdb.OperationalError(1644, "no such seat"), "45003")
    assert isinstance(error, errors.BusinessRule)
    assert (error.message, error.detail["sqlstate"]) == ("no such seat", "45003")
    own_number = from_mariadb(MySQLdb.OperationalError(31001, "no such seat"), "45003")
    assert isinstance(own_number, errors.BusinessRule)


@pytest.mark.parametrize("code", [1205, 1213, 2002, 2003, 1040])
def test_what_left_nothing_behind_may_be_tried_again(code: int) -> None:
    error = from_mariadb(MySQLdb.OperationalError(code, ""))
    assert isinstance(error, errors.StoreUnavailable)
    assert error.retryable
    assert is_harmless(error)


@pytest.mark.parametrize("code", [2006, 2013, 2055, 1927])
def test_a_broken_connection_may_have_written(code: int) -> None:
    error = from_mariadb(MySQLdb.OperationalError(code, ""))
    assert isinstance(error, errors.StoreUnavailable)
    assert not is_harmless(error)


def test_every_mariadb_error_is_mapped_and_none_shows_data() -> None:
    numbers = {n for module in (ER, CR) for name, n in vars(module).items() if name.isupper() and isinstance(n, int)}
    for number in numbers | set(MARIADB_CODES) | {0, 99999}:
        error = from_mariadb(MySQLdb.OperationalError(number, "secret 'hunter2'"))
        assert isinstance(error, errors.BedsError)
        if number not in MARIADB_CODES and number not in SIGNALS:
            assert "hunter2" not in str(error)
    for cls in (MySQLdb.InterfaceError, MySQLdb.NotSupportedError, MySQLdb.DataError, MySQLdb.InternalError):
        assert isinstance(from_mariadb(cls("text only")), errors.BedsError)


def _driver_errors(root: type[Exception]) -> list[type[Exception]]:
    return [root] + [found for child in root.__subclasses__() for found in _driver_errors(child)]


@pytest.mark.parametrize("cls", _driver_errors(mongo.PyMongoError))
def test_every_mongo_error_is_mapped(cls: type[Exception]) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "BulkWriteError": ({"writeErrors": []},),
        "ClientBulkWriteException": ({"error": None}, False),
        "EncryptedCollectionError": (ValueError("x"), {}),
    }
    error = cls(*arguments.get(cls.__name__, ("secret hunter2",)))
    translated = from_mongo(error)
    assert isinstance(translated, errors.BedsError)


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (11000, errors.DuplicateKey),
        (121, errors.InvalidPayload),
        (13, errors.StoreDenied),
        (50, errors.TimeLimitExceeded),
        (112, errors.StoreUnavailable),
        (10107, errors.StoreUnavailable),
        (211, errors.StoreUnavailable),
        (134, errors.StoreUnavailable),
        (999_999, errors.StoreError),
    ],
)
def test_mongo_server_codes(code: int, cls: type[errors.BedsError]) -> None:
    assert type(from_server(code, "m", {})) is cls


def test_a_member_that_has_just_started_leaves_a_write_in_doubt() -> None:
    """The driver repeats a commit, and only the repetition may have met the member without keys."""
    assert not is_harmless(from_server(211, "Cache Reader No keys found for HMAC", {}))


def test_the_words_hold_hint_code_and_event() -> None:
    assert str(errors.Unroutable("no queue", hint="declare it")) == "no queue (declare it) [unroutable]"
    assert str(errors.NotFound("none", event_id="ms.test.1")) == "none [not_found, event ms.test.1]"


def test_nearest_names_one_or_none() -> None:
    assert errors.nearest("Flihgts", ["Flights", "Planes"]) == "; did you mean 'Flights'?"
    assert errors.nearest("zzz", ["Flights"]) == ""


def test_a_value_in_a_drivers_words_is_not_taken_for_a_name() -> None:
    secret = "column secret1 for key 'x.secret2' at row 9"
    wrong = from_mariadb(
        MySQLdb.DataError(1366, f"Incorrect integer value: '{secret}' for column `b`.`t`.`c` at row 1")
    )
    assert wrong.detail["field"] == "c"
    double = from_mariadb(MySQLdb.IntegrityError(1062, f"Duplicate entry '{secret}' for key 'one_pin'"))
    assert double.detail["field"] == "one_pin"
    for code in (2, 9, 14, 52, 241):
        failed = from_server(code, f"Failed to parse '{secret}'", {"codeName": "Failed"})
        assert "secret" not in str(failed.to_wire())
