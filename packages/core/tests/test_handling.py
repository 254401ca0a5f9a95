"""One message on its way: retries, dead letters, missing and completed sagas, and what the context gives."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from bus_helpers import QUICK, Start, State, Step, Told, run
from saga_bus.core import (
    ConfigurationError,
    Envelope,
    MessageEncodeError,
    PermanentError,
    RetryPolicy,
    SagaDefinition,
    SagaMissingError,
)
from saga_bus.core.policies import Failures
from saga_bus.store import ConcurrencyError, OutcomeUnknownError, StoreUnavailableError


def made(start=None, step=None, *, name="Saga", **options):
    saga = SagaDefinition(name, State, correlate="key", **{"retry": QUICK, **options})

    async def nothing(message, state, ctx):
        state.values.append(message.value)

    saga.starts(Start)(start or nothing)
    saga.continues(Step)(step or nothing)
    return saga


def failing(error, times):
    runs = []

    async def handler(message, state, ctx):
        runs.append(ctx.attempt)
        if len(runs) <= times:
            raise error
        ctx.publish(Told("done"))

    return handler, runs


# -- retries ---------------------------------------------------------------------------------------------


def test_a_handler_that_raises_is_tried_again_and_then_put_aside():
    handler, runs = failing(ValueError("broken"), 99)

    async def work(place):
        await place.publish(Start("a"), headers={"own": "1"})
        assert runs == [1, 2, 3, 4, 5]
        (letter,) = place.transport.dead_letters
        assert (letter.reason, letter.details["error"]) == ("it failed: ValueError", "builtins.ValueError")
        assert letter.details["message"] == "broken"
        assert letter.details["attempts"] == "5"
        assert "handler" in letter.details["traceback"]
        assert letter.envelope.headers == {"own": "1"}
        assert place.bus.counts == {"dead-lettered": 1, "retried": 4}
        assert await place.state("Saga", "a") is None

    run(work, made(handler))


def test_a_permanent_error_is_not_tried_again():
    handler, runs = failing(PermanentError("never"), 99)

    async def work(place):
        await place.publish(Start("a"))
        assert runs == [1]
        assert place.transport.dead_letters[0].details["message"] == "never"

    run(work, made(handler))


def test_a_handler_that_recovers_sends_once():
    handler, runs = failing(OSError("for a moment"), 2)

    async def work(place):
        await place.publish(Start("a"))
        assert (runs, place.texts) == ([1, 2, 3], ["done"])
        assert place.transport.dead_letters == []

    run(work, made(handler))


@pytest.mark.parametrize("applied", [True, False])
def test_an_unknown_outcome_is_looked_up_and_the_handler_runs_again_only_if_nothing_was_written(applied):
    runs = []

    async def start(message, state, ctx):
        runs.append(1)
        ctx.publish(Told("started"))

    async def step(message, state, ctx):
        runs.append(2)
        ctx.publish(Told("stepped"))

    async def work(place):
        whole = {name: getattr(place.store, name) for name in ("insert", "update")}

        def once(name):
            async def write(*arguments):
                setattr(place.store, name, whole[name])
                if applied:
                    await whole[name](*arguments)
                raise OutcomeUnknownError("cut")

            setattr(place.store, name, write)

        once("insert")
        await place.publish(Start("a"))
        once("update")
        await place.publish(Step("a"))
        assert runs == ([1, 2] if applied else [1, 1, 2, 2])
        assert place.texts == ["started", "stepped"]
        assert (await place.state("Saga", "a")).metadata.version == 1
        assert place.bus.counts["handled"] == 2

    run(work, made(start, step))


def test_each_kind_of_failure_has_a_bound_of_its_own():
    conflict = ConcurrencyError(saga_name="s", saga_id="i")
    away = StoreUnavailableError("away")
    policy = RetryPolicy(attempts=3, conflicts=2, unavailable=1)
    failures = Failures(policy)
    errors = [conflict, away, ValueError(), conflict, ValueError()]
    assert [failures.pause_after(error) is not None for error in errors] == [True] * 5
    assert failures.count == 5
    assert failures.pause_after(conflict) is None
    assert failures.pause_after(away) is None
    assert failures.pause_after(ValueError()) is None


def test_pauses_double_are_jittered_and_bounded():
    policy = RetryPolicy(
        attempts=100, unavailable=100, first_pause=timedelta(seconds=1), longest_pause=timedelta(seconds=8)
    )
    for error in (ValueError(), StoreUnavailableError("away")):
        failures = Failures(policy)
        pauses = [failures.pause_after(error) for _ in range(60)]
        for pause, most in zip(pauses, [1, 2, 4, 8, 8, 8] + [8] * 54, strict=True):
            assert most / 2 <= pause <= most
        assert len(set(pauses)) > 50
    failures = Failures(policy)
    conflicts = [failures.pause_after(ConcurrencyError(saga_name="s", saga_id="i")) for _ in range(50)]
    assert max(conflicts) <= 0.25
    assert conflicts[0] <= 0.002


# -- messages that cannot be handled ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "body", "what"),
    [
        ("Start", b"{", "the message cannot be decoded"),
        ("Start", b'{"key":1}', "the message cannot be decoded"),
        ("Unknown", b"{}", "the message cannot be decoded"),
        ("Start", b'{"key":""}', "the message does not say which saga it is for"),
        ("Start", b'{"key":"\\u0000"}', "the message does not say which saga it is for"),
    ],
)
def test_a_message_that_cannot_be_understood_is_put_aside_with_its_bytes(name, body, what):
    async def work(place):
        envelope = Envelope(id="m", name=name, body=body, sent_at=datetime.now(UTC))
        await place.transport.send("Saga", envelope)
        await place.transport.drain()
        (letter,) = place.transport.dead_letters
        assert (letter.reason, letter.envelope) == (what, envelope)
        assert place.store.done == {}

    run(work, made())


@pytest.mark.parametrize("found", [None, 1.5, True, b"x"])
def test_a_correlation_function_must_find_something(found):
    saga = SagaDefinition("Saga", State)

    @saga.starts(Start, correlate=lambda message: found)
    async def start(message, state, ctx): ...

    async def work(place):
        await place.publish(Start("a"))
        assert "gives no correlation id" in place.transport.dead_letters[0].details["message"]

    run(work, saga)


# -- missing sagas ---------------------------------------------------------------------------------------


def test_a_message_without_its_saga_is_put_aside():
    async def work(place):
        await place.publish(Step("a"))
        (letter,) = place.transport.dead_letters
        assert letter.reason == "its saga is missing"
        assert place.bus.counts["retried"] == 0

    run(work, made())


def test_a_message_without_its_saga_is_ignored_where_that_is_said(caplog):
    caplog.set_level(logging.INFO)

    async def work(place):
        await place.publish(Step("a"))
        assert place.transport.dead_letters == []
        assert place.bus.counts["ignored"] == 1

    run(work, made(on_missing="ignore"))
    assert "saga Saga a is missing: Step is ignored" in caplog.text


def test_a_message_that_overtook_the_start_is_tried_again_where_that_is_said():
    async def work(place):
        await place.bus.publish(Step("a", 2))
        async with asyncio.timeout(30):
            while not place.bus.counts["retried"]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await place.publish(Start("a", 1))
        assert (await place.state("Saga", "a")).values == [1, 2]
        await place.publish(Step("b"))
        assert place.transport.dead_letters[0].reason == "its saga is missing"

    patient = RetryPolicy(attempts=9, first_pause=timedelta(milliseconds=5), longest_pause=timedelta(milliseconds=50))
    run(work, made(on_missing="retry", retry=patient))


def test_a_function_decides_what_becomes_of_a_message_without_its_saga():
    async def missing(message, ctx):
        if message.value == 1:
            raise PermanentError("not this one")
        ctx.publish(Told(f"{ctx.saga_name} {ctx.correlation_id} is missing"))

    async def work(place):
        await place.publish(Step("a", 1), Step("b", 2))
        assert [letter.details["message"] for letter in place.transport.dead_letters] == ["not this one"]
        assert place.texts == ["Saga b is missing"]
        assert await place.state("Saga", "b") is None

    run(work, made(on_missing=missing))


def test_a_missing_saga_is_an_error_of_its_own():
    failures = Failures(QUICK)
    assert failures.pause_after(SagaMissingError("x")) is None


# -- completed sagas -------------------------------------------------------------------------------------


async def ends(message, state, ctx):
    state.values.append(message.value)
    ctx.complete()


@pytest.mark.parametrize("policy", ["keep", "archive", "delete"])
def test_what_becomes_of_a_saga_that_has_ended(policy):
    async def tells(message, state, ctx):
        ctx.publish(Told("ended"))
        ctx.complete()

    async def work(place):
        await place.publish(Start("a"), Step("a"))
        state = await place.state("Saga", "a")
        assert place.texts == ["ended"]
        if policy == "delete":
            assert state is None
            assert place.store.done["delete"] == 1
            return
        assert state.metadata.is_completed
        assert (state.metadata.archived_at is not None) == (policy == "archive")
        assert place.store.done["update"] == 1

    run(work, made(step=tells, completed=policy))


@pytest.mark.parametrize("message", [Start("a", 2), Step("a", 2)])
@pytest.mark.parametrize("policy", ["dead-letter", "ignore", "restart"])
def test_a_message_for_a_saga_that_has_ended_is_never_dropped_silently(policy, message, caplog):
    caplog.set_level(logging.INFO)

    async def work(place):
        await place.publish(Start("a", 1))
        await place.publish(message)
        state = await place.state("Saga", "a")
        if policy == "restart" and isinstance(message, Start):
            assert (state.values, state.metadata.version, state.metadata.is_completed) == ([2], 1, True)
            assert place.transport.dead_letters == []
            return
        assert (state.values, state.metadata.version) == ([1], 0)
        if policy == "ignore":
            assert place.bus.counts["ignored"] == 1
            assert "has ended: " in caplog.text
        else:
            assert [letter.reason for letter in place.transport.dead_letters] == ["its saga has ended"]

    run(work, made(ends, ends, on_completed=policy))


def test_a_restarted_saga_is_running_and_knows_what_it_handled():
    async def start(message, state, ctx):
        state.values.append(message.value)
        if message.value == 1:
            ctx.complete()

    async def work(place):
        await place.publish(Start("a", 1), message_id="first")
        await place.publish(Start("a", 2), message_id="second")
        state = await place.state("Saga", "a")
        assert (state.values, state.metadata.is_completed, state.metadata.archived_at) == ([2], False, None)
        await place.publish(Start("a", 1), message_id="first")
        assert (await place.state("Saga", "a")).values == [2]
        assert place.bus.counts["duplicate"] == 1

    run(work, made(start, on_completed="restart", completed="archive"))


# -- exactly once on the state ---------------------------------------------------------------------------


def test_a_message_that_comes_again_is_acknowledged_without_running_the_handler():
    async def work(place):
        await place.publish(Start("a", 1), message_id="one")
        await place.publish(Step("a", 2), message_id="two")
        for _ in range(3):
            await place.publish(Step("a", 2), message_id="two")
            await place.publish(Start("a", 1), message_id="one")
        state = await place.state("Saga", "a")
        assert (state.values, state.metadata.version) == ([1, 2], 1)
        assert place.bus.counts["duplicate"] == 6
        assert state.metadata.handled == ("one", "two")

    run(work, made())


def test_the_handled_ids_are_bounded():
    async def work(place):
        await place.publish(Start("a", 0), message_id="0")
        for number in range(1, 9):
            await place.publish(Step("a", number), message_id=str(number))
        assert (await place.state("Saga", "a")).metadata.handled == ("6", "7", "8")

    run(work, made(remember=3))


# -- states ----------------------------------------------------------------------------------------------


def test_a_handler_may_return_a_new_state_and_its_metadata_does_not_matter():
    async def step(message, state, ctx):
        return State(values=[*state.values, message.value], note="new")

    async def work(place):
        await place.publish(Start("a", 1))
        before = await place.state("Saga", "a")
        await place.publish(Step("a", 2))
        after = await place.state("Saga", "a")
        assert (after.values, after.note, after.metadata.version) == ([1, 2], "new", 1)
        assert after.metadata.saga_id == before.metadata.saga_id
        assert after.metadata.created_at == before.metadata.created_at

    run(work, made(step=step))


def test_a_handler_that_returns_something_else_is_put_aside():
    async def step(message, state, ctx):
        return True

    async def work(place):
        await place.publish(Start("a"), Step("a"))
        assert "returned a bool, not a State or None" in place.transport.dead_letters[0].details["message"]

    run(work, made(step=step))


# -- the context -----------------------------------------------------------------------------------------


def test_what_the_context_says(caplog):
    caplog.set_level(logging.INFO)
    seen = {}

    async def start(message, state, ctx):
        seen.update(
            saga_name=ctx.saga_name,
            correlation_id=ctx.correlation_id,
            message_id=ctx.message_id,
            headers=dict(ctx.headers),
            attempt=ctx.attempt,
            is_new=ctx.is_new,
            same_id=ctx.saga_id == state.metadata.saga_id,
        )
        ctx.logger.info("value %d", message.value)

    async def work(place):
        await place.publish(Start("a", 7), message_id="m", headers={"own": "1"})

    run(work, made(start))
    assert seen == {
        "saga_name": "Saga",
        "correlation_id": "a",
        "message_id": "m",
        "headers": {"own": "1"},
        "attempt": 1,
        "is_new": True,
        "same_id": True,
    }
    (record,) = [record for record in caplog.records if record.name == "saga_bus.core.handlers"]
    assert (record.getMessage(), record.message_id, record.message_name) == ("Saga a: value 7", "m", "Start")


def test_what_is_sent_carries_where_it_comes_from_and_the_trace():
    async def start(message, state, ctx):
        ctx.publish(Told("1"), headers={"own": "1"})
        ctx.send("ear", Told("2"))

    async def work(place):
        trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}
        await place.publish(Start("a"), message_id="m", headers={**trace, "private": "stays"})
        state = await place.state("Saga", "a")
        common = {**trace, "saga-name": "Saga", "saga-id": state.metadata.saga_id, "caused-by": "m"}
        assert [envelope.headers for envelope in place.heard] == [{**common, "own": "1"}, common]
        assert (state.metadata.trace_parent, state.metadata.trace_state) == tuple(trace.values())
        assert len({envelope.id for envelope in place.heard}) == 2

    run(work, made(start))


def test_a_handler_that_runs_again_makes_the_same_ids():
    ids = []

    async def start(message, state, ctx):
        ctx.publish(Told("1"))
        ctx.publish(Told("2"))
        ids.append([outgoing.id for outgoing in ctx.outgoing])
        if len(ids) == 1:
            raise ValueError("again")

    async def work(place):
        await place.publish(Start("a"))
        assert ids[0] == ids[1] == [envelope.id for envelope in place.heard]

    run(work, made(start))


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda ctx: ctx.publish(Told(5)), MessageEncodeError),
        (lambda ctx: ctx.publish(5), MessageEncodeError),
        (lambda ctx: ctx.publish(Told("x"), headers={"": "x"}), ConfigurationError),
        (lambda ctx: ctx.publish(Told("x"), headers={"a": 1}), ConfigurationError),
        (lambda ctx: ctx.publish(Told("x"), headers={"a": "\0"}), ConfigurationError),
        (lambda ctx: ctx.send("", Told("x")), ConfigurationError),
        (lambda ctx: ctx.schedule(Told("x"), timedelta(seconds=-1)), ConfigurationError),
        (lambda ctx: ctx.schedule(Told("x"), timedelta.max), MessageEncodeError),
        (lambda ctx: ctx.set_timeout(timedelta(0)), ConfigurationError),
        (lambda ctx: ctx.set_timeout(timedelta(1)), ConfigurationError),  # there is no on_timeout
    ],
)
def test_a_wrong_use_of_the_context_raises_at_once(use, error):
    seen = []

    async def start(message, state, ctx):
        try:
            use(ctx)
        except Exception as caught:
            seen.append(type(caught))
            raise

    async def work(place):
        await place.publish(Start("a"))
        assert set(seen) == {error}
        assert len(place.transport.dead_letters) == 1
        assert place.texts == []

    run(work, made(start))


def test_an_unreadable_name_is_not_sent():
    class Bad(msgspec.Struct):
        message_name = "\n"

    async def start(message, state, ctx):
        ctx.publish(Bad())

    async def work(place):
        await place.publish(Start("a"))
        assert "printable" in place.transport.dead_letters[0].details["message"]

    run(work, made(start))
