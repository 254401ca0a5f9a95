"""Writes in groups: what goes over the wire, and what each caller is told."""

import asyncio
import re

import pytest

from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
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
SINGLE = {"insert": "INSERT INTO", "update": "UPDATE ["}


class NoteState(SagaState, kw_only=True):
    note: str = ""


class Server:
    """Answers groups, single writes and the look-ups behind them, each with what a test says."""

    def __init__(self, endpoint, kind, *, group=None, single=None, looks=None, is_babelfish=False):
        self.kind, self.group, self.single, self.looks = kind, group, single, looks
        self.endpoint = endpoint(self.answer)
        self.endpoint.is_babelfish = is_babelfish
        self.made = endpoint

    def answer(self, sql):
        if "LOCK_TIMEOUT 50" in sql:
            return self.group(sql)
        if "SELECT version" in sql or "AS taken" in sql:
            return self.made.numbers("found", *self.looks)
        return self.single(sql) if self.single is not None else self.made.counted(1)

    def written(self, *numbers):
        """The answer to a group that wrote these sagas, which must be all of them if it inserts."""
        settled = self.made.settled()
        if self.kind == "insert":
            return settled + self.made.counted(len(numbers)) + settled
        return settled + self.made.pairs(*((SAGA, f"id-{number}") for number in numbers)) + settled

    @property
    def groups(self):
        return [
            len(re.findall(r"^ *\(@P\d+|^ *\(\?", text, re.MULTILINE))
            for text in self.endpoint.requests
            if "LOCK_TIMEOUT 50" in text
        ]

    @property
    def singles(self):
        texts = [text for text in self.endpoint.requests if "LOCK_TIMEOUT 50" not in text]
        return sum(SINGLE[self.kind] in text for text in texts)

    @property
    def resets(self):
        return sum(map(self.made.is_reset, self.endpoint.requests))


@pytest.fixture(params=["insert", "update"])
def make(request, endpoint):
    def made(**options):
        return Server(endpoint, request.param, **options)

    return made


@pytest.fixture
def updating(endpoint):
    return lambda **options: Server(endpoint, "update", **options)


def write(store, kind, number, note=""):
    fresh = SagaMetadata.fresh(f"id-{number}")
    if kind == "insert":
        return store.insert(SAGA, f"order-{number}", NoteState(metadata=fresh, note=note))
    return store.update(SAGA, NoteState(metadata=fresh.next(), note=note), 0)


def outcomes_of(server, url_of, *, callers=CALLERS, rounds=1, note="", **options):
    """The outcomes of callers that write a saga each, at the same time."""

    async def run():
        async with SqlServerSagaStore(url_of(server.endpoint.port), **options) as store:
            for _ in range(rounds):
                notes = (note(number) if callable(note) else note for number in range(callers))
                outcomes = await asyncio.gather(
                    *(write(store, server.kind, number, text) for number, text in enumerate(notes)),
                    return_exceptions=True,
                )
            return outcomes

    return asyncio.run(run())


def types_of(outcomes):
    return [type(outcome) for outcome in outcomes]


def test_a_lone_write_is_no_group(make, url_of):
    server = make()
    assert outcomes_of(server, url_of, callers=1) == [None]
    assert (server.groups, server.singles) == ([], 1)


@pytest.mark.parametrize("is_babelfish", [False, True])
def test_writes_at_the_same_time_are_one_statement_behind_the_first(make, url_of, is_babelfish):
    server = make(group=lambda sql: server.written(*range(1, CALLERS)), is_babelfish=is_babelfish)
    assert outcomes_of(server, url_of) == [None] * CALLERS
    assert server.groups == [8]  # five, and three that stand in for what is missing
    assert (server.singles, server.resets) == (1, 0)


@pytest.mark.parametrize(("is_babelfish", "joins"), [(False, 1), (True, 0)])
def test_babelfish_gets_its_own_form_of_a_group_of_updates(updating, url_of, is_babelfish, joins):
    server = updating(group=lambda sql: server.written(*range(1, CALLERS)), is_babelfish=is_babelfish)
    assert outcomes_of(server, url_of, rounds=3) == [None] * CALLERS
    groups = [text for text in server.endpoint.requests if "LOCK_TIMEOUT 50" in text]
    assert [text.count("INNER JOIN") for text in groups] == [joins] * 3
    # Each connection asks once what it is connected to.
    assert sum("AS babelfish" in text for text in server.endpoint.requests) <= len(server.endpoint.logins)


def test_what_a_group_did_not_write_is_written_alone(updating, url_of):
    server = updating(group=lambda sql: server.written(1, 3))
    assert outcomes_of(server, url_of) == [None] * CALLERS
    assert (len(server.groups), server.singles) == (1, 1 + 3)


@pytest.mark.parametrize(("versions", "kind"), [([7], ConcurrencyError), ([], SagaNotFoundError)])
def test_a_conflict_fails_its_own_caller_alone(updating, endpoint, url_of, versions, kind):
    server = updating(
        group=lambda sql: server.written(1, 2, 4, 5),
        single=lambda sql: endpoint.counted(0 if server.endpoint.asks_for("id-3") else 1),
        looks=versions,
    )
    outcomes = outcomes_of(server, url_of)
    assert types_of(outcomes) == [kind if number == 3 else type(None) for number in range(CALLERS)]


@pytest.mark.parametrize(("taken", "conflict"), [(1, "saga_id"), (2, "correlation_id")])
@pytest.mark.parametrize("number", [2627, 2601])
def test_a_duplicate_fails_its_own_caller_alone(endpoint, url_of, taken, conflict, number):
    def single(sql):
        return endpoint.error(number, "Duplicate.") if server.endpoint.asks_for("id-3") else endpoint.counted(1)

    duplicate = endpoint.settled() + endpoint.error(number, "Duplicate.") + endpoint.settled()
    server = Server(endpoint, "insert", group=lambda sql: duplicate, single=single, looks=[taken])
    outcomes = outcomes_of(server, url_of)
    assert types_of(outcomes) == [DuplicateSagaError if each == 3 else type(None) for each in range(CALLERS)]
    assert outcomes[3].conflict == conflict


@pytest.mark.parametrize(
    ("number", "text", "severity"),
    [
        (1205, "deadlocked", 13),
        (1222, "Lock request time out period exceeded.", 16),
        (33557097, "canceling statement due to lock timeout", 16),
        (547, "The statement conflicted with the CHECK constraint.", 16),
        (650, "READPAST is not for this isolation level", 16),
    ],
)
def test_a_group_that_the_server_refuses_is_written_one_by_one(make, endpoint, url_of, number, text, severity):
    server = make(group=lambda sql: endpoint.settled() + endpoint.error(number, text, severity=severity))
    assert outcomes_of(server, url_of) == [None] * CALLERS
    assert server.singles == CALLERS
    assert len(server.groups) == (3 if number == 1205 else 1)  # which the pool tries again by itself
    # Before its connection serves others, it must wait for locks again.
    assert server.resets == len(server.groups)


def test_a_connection_that_cannot_wait_for_locks_again_is_given_up(make, endpoint, url_of):
    server = make(group=lambda sql: endpoint.error(1222, "Lock request time out period exceeded.", severity=16))
    result = server.endpoint._result
    server.endpoint._result = lambda text: endpoint.error(1, "no") if endpoint.is_reset(text) else result(text)
    assert outcomes_of(server, url_of, pool_size=1) == [None] * CALLERS
    assert (server.resets, len(server.endpoint.logins)) == (1, 2)


def test_a_server_that_never_takes_a_group_is_not_asked_for_ever(make, endpoint, url_of):
    server = make(group=lambda sql: endpoint.error(334, "The target table has triggers.", severity=16))
    assert outcomes_of(server, url_of, rounds=6) == [None] * CALLERS
    assert len(server.groups) == 3
    assert server.singles == 6 * CALLERS


@pytest.mark.parametrize("number", [2627, 1222, 547])
def test_what_the_data_are_to_blame_for_ends_no_grouping(make, endpoint, url_of, number):
    server = make(group=lambda sql: endpoint.error(number, "of one row", severity=16))
    assert outcomes_of(server, url_of, rounds=6) == [None] * CALLERS
    assert len(server.groups) == 6


def test_a_group_that_is_only_sometimes_refused_is_tried_on(make, endpoint, url_of):
    answers = iter([False, False, True] * 3)

    def group(sql):
        written = server.written(*range(1, CALLERS))
        return written if next(answers) else endpoint.error(8623, "no plan", severity=16)

    server = make(group=group)
    assert outcomes_of(server, url_of, rounds=9) == [None] * CALLERS
    assert len(server.groups) == 9


def test_a_connection_that_is_lost_with_a_group_leaves_each_of_its_writes_unknown(make, url_of):
    server = make(group=lambda sql: None)
    outcomes = outcomes_of(server, url_of)
    assert types_of(outcomes) == [type(None)] + [OutcomeUnknownError] * (CALLERS - 1)
    assert server.singles == 1  # nothing is written again


def test_a_lone_write_that_waits_holds_up_no_group(make, url_of):
    server = make(group=lambda sql: server.written(*range(1, CALLERS)), single=lambda sql: ...)

    async def run():
        options = {"state_types": {SAGA: NoteState}, "command_timeout": 1}
        async with SqlServerSagaStore(url_of(server.endpoint.port), **options) as store:
            tasks = [asyncio.ensure_future(write(store, server.kind, number)) for number in range(CALLERS)]
            assert await asyncio.gather(*tasks[1:]) == [None] * (CALLERS - 1)
            assert not tasks[0].done()
            with pytest.raises(StoreUnavailableError):
                await tasks[0]

    asyncio.run(run())


def test_two_that_start_the_same_saga_are_in_no_group_together(endpoint, url_of):
    """They have the correlation id in common, and one of them would always fail the group of both."""
    server = Server(endpoint, "insert", group=lambda sql: server.written(1, 2))

    async def run():
        async with SqlServerSagaStore(url_of(server.endpoint.port), state_types={SAGA: NoteState}) as store:
            fresh = [NoteState(metadata=SagaMetadata.fresh(f"id-{number}")) for number in range(5)]
            await asyncio.gather(*(store.insert(SAGA, "order-1", each) for each in fresh))

    asyncio.run(run())
    assert (server.groups, server.singles) == ([], 5)


def test_rows_before_an_error_count_for_nothing(updating, endpoint, url_of):
    """The server sends them as it goes, and undoes the whole statement afterwards."""

    def group(sql):
        rows = endpoint.pairs(*((SAGA, f"id-{number}") for number in range(1, CALLERS)))
        return endpoint.settled() + rows + endpoint.error(547, "The CHECK constraint.", severity=16)

    server = updating(group=group)
    assert outcomes_of(server, url_of) == [None] * CALLERS
    assert (len(server.groups), server.singles) == (1, CALLERS)


@pytest.mark.parametrize("size", [3_000, 20_000])  # longer texts than 4,000 characters go to the driver in parts
def test_long_documents_arrive_whole(make, url_of, size):
    server = make(group=lambda sql: server.written(*range(1, CALLERS)))
    assert (
        outcomes_of(server, url_of, note=lambda number: f"begin{number} {'ü' * size} end{number}") == [None] * CALLERS
    )
    for number in range(CALLERS):
        assert f"begin{number} {'ü' * size} end{number}".encode("utf-16-le") in server.endpoint.sent
    assert len(server.groups) == 1


def test_a_large_document_is_in_no_group(make, url_of):
    server = make()
    assert outcomes_of(server, url_of, note="x" * 70_000) == [None] * CALLERS
    assert (server.groups, server.singles) == ([], CALLERS)


def test_a_document_that_is_no_text_fails_its_own_caller_alone(make, url_of):
    class Codec:
        def encode(self, state):
            self.state = state
            return b"\xff" if state.note == "bad" else b"{}"

        def decode(self, saga_name, document):
            return self.state

    server = make()
    outcomes = outcomes_of(server, url_of, codec=Codec(), note=lambda number: "bad" if number == 3 else "")
    assert types_of(outcomes) == [StateEncodeError if number == 3 else type(None) for number in range(CALLERS)]
    assert server.groups == []


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
def test_what_babelfish_tells_by_its_text_alone(updating, endpoint, url_of, text, kind):
    server = updating(single=lambda sql: endpoint.error(33557097, text, severity=16))
    (outcome,) = outcomes_of(server, url_of, callers=1)
    assert isinstance(outcome, SagaStoreError)
    assert type(outcome).__name__ == kind
