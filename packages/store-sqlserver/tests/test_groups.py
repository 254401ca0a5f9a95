"""Updates in groups: what goes over the wire, and what each caller is told."""

import asyncio
import re

import pytest

from saga_bus.store import (
    ConcurrencyError,
    OutcomeUnknownError,
    SagaMetadata,
    SagaNotFoundError,
    SagaState,
    SagaStoreError,
    StateEncodeError,
    StoreUnavailableError,
)
from saga_bus.store_sqlserver import SqlServerSagaStore

SAGA = "OrderSaga"
CALLERS = 6


class NoteState(SagaState, kw_only=True):
    note: str = ""


def next_version(number, note=""):
    return NoteState(metadata=SagaMetadata.fresh(f"id-{number}").next(), note=note)


class Server:
    """Answers groups, single updates and look-ups of versions, each with what a test says."""

    def __init__(self, endpoint, *, group, single=None, versions=None, is_babelfish=False):
        self.group, self.single, self.versions = group, single, versions
        self.endpoint = endpoint(self.answer)
        self.endpoint.is_babelfish = is_babelfish
        self.made = endpoint

    def answer(self, sql):
        if "OUTPUT inserted" in sql:
            return self.group(sql)
        if "SELECT version" in sql:
            return self.made.numbers("version", *self.versions)
        return self.single(sql) if self.single is not None else self.made.counted(1)

    @property
    def groups(self):
        return [
            len(re.findall(r"^ *\(@P\d+|^ *\(\?", text, re.MULTILINE))
            for text in self.endpoint.requests
            if "OUTPUT inserted" in text
        ]

    @property
    def singles(self):
        found = [text for text in self.endpoint.requests if "UPDATE" in text and "OUTPUT" not in text]
        return len(found)


def outcomes_of(server, url_of, *, callers=CALLERS, rounds=1, note=""):
    """The outcomes of callers that update a saga each, at the same time."""

    async def run():
        async with SqlServerSagaStore(url_of(server.endpoint.port), state_types={SAGA: NoteState}) as store:
            for _ in range(rounds):
                outcomes = await asyncio.gather(
                    *(store.update(SAGA, next_version(number, note), 0) for number in range(callers)),
                    return_exceptions=True,
                )
            return outcomes

    return asyncio.run(run())


def written(endpoint, *numbers):
    return endpoint.pairs(*((SAGA, f"id-{number}") for number in numbers))


def test_a_lone_update_is_no_group(endpoint, url_of):
    server = Server(endpoint, group=None)
    assert outcomes_of(server, url_of, callers=1) == [None]
    assert (server.groups, server.singles) == ([], 1)


def test_updates_at_the_same_time_are_one_statement_behind_the_first(endpoint, url_of):
    server = Server(endpoint, group=lambda sql: written(endpoint, *range(1, CALLERS)))
    assert outcomes_of(server, url_of) == [None] * CALLERS
    assert server.groups == [8]  # five, and three that stand in for what is missing
    assert server.singles == 1


def test_what_a_group_did_not_write_is_written_alone(endpoint, url_of):
    server = Server(endpoint, group=lambda sql: written(endpoint, 1, 3))
    assert outcomes_of(server, url_of) == [None] * CALLERS
    assert (len(server.groups), server.singles) == (1, 1 + 3)


@pytest.mark.parametrize(("versions", "kind"), [([7], ConcurrencyError), ([], SagaNotFoundError)])
def test_a_conflict_fails_its_own_caller_alone(endpoint, url_of, versions, kind):
    count = iter([1])  # the first, which is alone, and then no more
    server = Server(
        endpoint,
        group=lambda sql: written(endpoint, 1, 2, 4, 5),
        single=lambda sql: endpoint.counted(next(count, 0)),
        versions=versions,
    )
    outcomes = outcomes_of(server, url_of)
    assert [type(outcome) for outcome in outcomes].count(type(None)) == CALLERS - 1
    (conflict,) = [outcome for outcome in outcomes if outcome is not None]
    assert type(conflict) is kind


@pytest.mark.parametrize(
    ("number", "text", "severity"),
    [
        (1205, "deadlocked", 13),
        (1222, "Lock request time out period exceeded.", 16),
        (547, "The UPDATE statement conflicted with the CHECK constraint.", 16),
        (650, "READPAST is not for this isolation level", 16),
    ],
)
def test_a_group_that_the_server_refuses_is_written_one_by_one(endpoint, url_of, number, text, severity):
    server = Server(endpoint, group=lambda sql: endpoint.error(number, text, severity=severity))
    assert outcomes_of(server, url_of) == [None] * CALLERS
    assert server.singles == CALLERS
    assert len(server.groups) == (3 if number == 1205 else 1)  # which the pool tries again by itself


def test_a_server_that_never_takes_a_group_is_not_asked_for_ever(endpoint, url_of):
    server = Server(endpoint, group=lambda sql: endpoint.error(334, "The target table has triggers.", severity=16))
    assert outcomes_of(server, url_of, rounds=6) == [None] * CALLERS
    assert len(server.groups) == 3
    assert server.singles == 6 * CALLERS


def test_a_group_that_is_only_sometimes_refused_is_tried_on(endpoint, url_of):
    answers = iter([False, False, True] * 3)

    def group(sql):
        return written(endpoint, *range(1, CALLERS)) if next(answers) else endpoint.error(8623, "no plan", severity=16)

    server = Server(endpoint, group=group)
    assert outcomes_of(server, url_of, rounds=9) == [None] * CALLERS
    assert len(server.groups) == 9


def test_a_connection_that_is_lost_with_a_group_leaves_each_of_its_writes_unknown(endpoint, url_of):
    server = Server(endpoint, group=lambda sql: None)
    outcomes = outcomes_of(server, url_of)
    assert outcomes[0] is None
    assert [type(outcome) for outcome in outcomes[1:]] == [OutcomeUnknownError] * (CALLERS - 1)
    assert server.singles == 1  # nothing is written again


def test_a_lone_update_that_waits_holds_up_no_group(endpoint, url_of):
    server = Server(endpoint, group=lambda sql: written(endpoint, *range(1, CALLERS)), single=lambda sql: ...)

    async def run():
        options = {"state_types": {SAGA: NoteState}, "command_timeout": 1}
        async with SqlServerSagaStore(url_of(server.endpoint.port), **options) as store:
            tasks = [asyncio.ensure_future(store.update(SAGA, next_version(n), 0)) for n in range(CALLERS)]
            assert await asyncio.gather(*tasks[1:]) == [None] * (CALLERS - 1)
            assert not tasks[0].done()
            with pytest.raises(StoreUnavailableError):
                await tasks[0]

    asyncio.run(run())


def test_babelfish_gets_no_groups_as_it_ignores_the_hints(endpoint, url_of):
    server = Server(endpoint, group=None, is_babelfish=True)
    assert outcomes_of(server, url_of) == [None] * CALLERS
    assert (server.groups, server.singles) == ([], CALLERS)


def test_a_large_document_is_in_no_group(endpoint, url_of):
    server = Server(endpoint, group=None)
    assert outcomes_of(server, url_of, note="x" * 70_000) == [None] * CALLERS
    assert (server.groups, server.singles) == ([], CALLERS)


def test_a_document_that_is_no_text_fails_its_own_caller_alone(endpoint, url_of):
    class Codec:
        def encode(self, state):
            self.state = state
            return b"\xff" if state.note == "bad" else b"{}"

        def decode(self, saga_name, document):
            return self.state

    server = Server(endpoint, group=None)

    async def run():
        async with SqlServerSagaStore(url_of(server.endpoint.port), codec=Codec()) as store:
            outcomes = await asyncio.gather(
                *(store.update(SAGA, next_version(n, "bad" if n == 3 else ""), 0) for n in range(CALLERS)),
                return_exceptions=True,
            )
            assert [type(outcome) for outcome in outcomes] == [
                StateEncodeError if number == 3 else type(None) for number in range(CALLERS)
            ]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('relation "t" does not exist', "SchemaError"),
        ('column "state" does not exist', "SchemaError"),
        ("could not serialize access due to concurrent update", "StoreUnavailableError"),
        ("canceling statement due to lock timeout", "StoreUnavailableError"),
        ("permission denied for table t", "SagaStoreError"),
        ("something else", "SagaStoreError"),
    ],
)
def test_what_babelfish_tells_by_its_text_alone(endpoint, url_of, text, kind):
    server = Server(endpoint, group=None, single=lambda sql: endpoint.error(33557097, text, severity=16))
    (outcome,) = outcomes_of(server, url_of, callers=1)
    assert isinstance(outcome, SagaStoreError)
    assert type(outcome).__name__ == kind
