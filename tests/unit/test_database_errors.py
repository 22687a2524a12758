"""shared/db/errors.py: which SQLSTATEs are the fault of the data, as a table."""

from __future__ import annotations

import re

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from shared.db.errors import DATA_CLASSES, DatabaseCorrupted, as_temporary, is_caused_by_data, is_outcome_unknown
from shared.errors import Temporary

TEMPORARY = """
    08000 connection exception            08001 cannot connect               08003 connection does not exist
    08004 connection rejected             08006 connection failure           08P01 protocol violation
    0A000 cached plan must not change result type                            0B000 invalid transaction initiation
    24000 invalid cursor state            25001 active transaction           25006 read-only transaction
    25P01 no active transaction           25P02 in failed transaction        25P03 idle in transaction time-out
    26000 prepared statement gone         27000 triggered data change        28000 login refused
    28P01 invalid password                2D000 invalid transaction end      3B001 invalid savepoint
    3D000 database does not exist         3F000 schema does not exist        40001 serialization failure
    40003 completion unknown              40P01 deadlock                     42501 insufficient privilege
    42601 syntax error                    42703 undefined column             42704 undefined object
    42804 datatype mismatch               42883 undefined function           42P01 undefined table
    42P05 prepared statement doubled      42P10 no index for ON CONFLICT     53000 insufficient resources
    53100 disk full                       53200 out of memory                53300 too many connections
    53400 configuration limit             55000 not in prerequisite state    55006 object in use
    55P03 lock not available              57000 operator intervention        57014 query cancelled
    57P01 shutdown by administrator       57P02 shutdown by crash            57P03 cannot connect now
    57P04 database dropped                57P05 idle session time-out        58000 system error
    58030 I/O error                       58P01 undefined file               F0000 configuration file
    HV000 foreign data wrapper            72000 snapshot too old             XX000 internal error
    XX001 data corrupted                  XX002 index corrupted
"""
DATA = """
    21000 cardinality violation           22001 text too long                22003 number out of range
    22007 invalid datetime                22021 character not in repertoire  22P02 invalid text
    22P05 untranslatable character        23502 null                         23503 foreign key
    23505 unique                          23514 check                        23P01 exclusion
    44000 WITH CHECK OPTION               54000 limit exceeded               54001 statement too complex
    P0001 raised by a trigger
"""


def codes(table: str) -> list[str]:
    return re.findall(r"\b(?=\w*\d)[0-9A-Z]{5}\b", table)


def error_of(code: str) -> psycopg.Error:
    return psycopg.errors.lookup(code)("the text")


@pytest.mark.parametrize("code", codes(TEMPORARY))
def test_an_error_of_server_schema_or_connection_is_temporary(code: str) -> None:
    error = error_of(code)
    assert not is_caused_by_data(error)
    wrapped = as_temporary(error)
    assert isinstance(wrapped, Temporary) and "the text" in str(wrapped)


@pytest.mark.parametrize("code", codes(DATA))
def test_an_error_of_the_statements_data_stays_what_it_is(code: str) -> None:
    error = error_of(code)
    assert is_caused_by_data(error) and as_temporary(error) is None


def test_each_class_that_psycopg_knows_is_decided_in_one_place() -> None:
    known = {
        error.sqlstate
        for error in vars(psycopg.errors).values()
        if isinstance(error, type) and issubclass(error, psycopg.Error) and error.sqlstate
    }
    assert len(known) > 200
    for code in known:
        assert is_caused_by_data(error_of(code)) == (code[:2] in DATA_CLASSES), code


@pytest.mark.parametrize(
    ("error", "temporary"),
    [
        (psycopg.OperationalError("the connection is lost"), True),
        (psycopg.InterfaceError("the connection is closed"), True),
        (PoolTimeout("couldn't get a connection"), True),
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), False),
        (psycopg.ProgrammingError("cannot adapt type"), False),
    ],
)
def test_errors_without_sqlstate_are_of_the_connection_or_the_value(
    error: psycopg.Error | PoolTimeout, temporary: bool
) -> None:
    assert (as_temporary(error) is not None) == temporary


def test_a_schema_of_another_version_is_named() -> None:
    assert "its schema is not that of this version" in str(as_temporary(error_of("42P01")))
    assert "ReadOnlySqlTransaction" in str(as_temporary(error_of("25006")))


@pytest.mark.parametrize("code", ["XX001", "XX002"])
def test_corrupted_data_is_named(code: str) -> None:
    error = as_temporary(error_of(code))
    assert isinstance(error, DatabaseCorrupted) and f"its data is corrupted ({code})" in str(error)
    assert not isinstance(as_temporary(error_of("XX000")), DatabaseCorrupted)


@pytest.mark.parametrize(
    ("code", "unknown"),
    [("08006", True), ("57P01", True), ("40003", True), ("25006", False), ("40001", False), ("53100", False)],
)
def test_only_a_lost_answer_leaves_a_commit_open(code: str, unknown: bool) -> None:
    wrapped = Temporary("database: …")
    wrapped.__cause__ = error_of(code)
    assert is_outcome_unknown(wrapped) == unknown
    assert not is_outcome_unknown(error_of(code))


def test_a_time_out_leaves_a_commit_open() -> None:
    wrapped = Temporary("database: no answer within 60 s")
    wrapped.__cause__ = TimeoutError()
    assert is_outcome_unknown(wrapped)
