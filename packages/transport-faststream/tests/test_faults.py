"""Brokers that are killed and started again, connections that break, passwords that are wrong."""

import asyncio
import gc
import logging
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import pytest

from brokers import new_prefix
from brokers.private import private_nats, private_rabbitmq, private_redis
from faults.proxy import Proxy
from providers import UnavailableError
from saga_bus.core import TransportError, TransportUnavailableError
from saga_bus.transport_faststream import FastStreamTransport
from transport_places import Inbox, envelope

SECRET = "v3ry-s3cret"
PRIVATE = {"nats": private_nats, "rabbitmq": private_rabbitmq, "redis-streams": private_redis}


@pytest.fixture(scope="module", params=sorted(PRIVATE))
def private(request, brokers):
    """A broker to be killed."""
    with tempfile.TemporaryDirectory(prefix="saga-bus-fault-", ignore_cleanup_errors=True) as folder:
        try:
            broker = PRIVATE[request.param](Path(folder))
            broker.start()
        except UnavailableError as error:
            brokers.missing(request.param, str(error))
        try:
            yield broker
        finally:
            broker.kill()


def transport_on(url, **options):
    options = {
        "prefix": new_prefix(),
        "redeliver_after": timedelta(seconds=1),
        "timeout": timedelta(seconds=5),
    } | options
    return FastStreamTransport(url, **options)


async def persistently(work):
    """Do something again until the broker is there."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await work()
            except TransportUnavailableError:
                await asyncio.sleep(0.1)


def test_a_broker_that_is_killed_and_started_again_loses_nothing(private):
    async def run():
        async with transport_on(private.url) as transport:
            held = asyncio.Event()

            async def end(delivery):
                if delivery.envelope.headers.get("hold") and delivery.attempt == 1 and not held.is_set():
                    await held.wait()
                await delivery.ack()

            inbox = Inbox(end)
            await transport.listen("Work", ["OrderPlaced"], inbox.receive, concurrency=4)
            before = [envelope() for _ in range(20)]
            in_hand = envelope(hold="yes")
            later = envelope(later="yes")
            await transport.send("NobodyYet", later)
            await asyncio.sleep(1.5)  # RabbitMQ 3.10 loses a quorum queue that is younger when it is killed
            for message in (in_hand, *before):
                await transport.publish(message)
            await inbox.wait(21)
            await asyncio.to_thread(private.kill)
            with pytest.raises(TransportUnavailableError):
                await transport.publish(envelope())
            await asyncio.to_thread(private.start)
            held.set()
            after = [envelope() for _ in range(20)]
            for message in after:
                await persistently(lambda message=message: transport.publish(message))
            expected = {message.id for message in (in_hand, *before, *after)}
            async with asyncio.timeout(60):
                while not expected <= set(inbox.ids):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            fresh = Inbox()
            await persistently(lambda: transport.listen("NobodyYet", [], fresh.receive, concurrency=1))
            await fresh.wait(1)
            assert fresh.ids == [later.id]

    asyncio.run(run())


def test_a_cut_connection_is_replaced(private):
    async def run():
        async with Proxy(private.host, private.port) as proxy:
            url = private.url.replace(f":{private.port}", f":{proxy.port}")
            async with transport_on(url) as transport:
                inbox = Inbox()
                await transport.listen("Work", ["OrderPlaced"], inbox.receive, concurrency=2)
                sent = []
                for _ in range(3):
                    for _ in range(3):
                        sent.append(envelope())
                        await persistently(lambda message=sent[-1]: transport.publish(message))
                    proxy.cut()
                async with asyncio.timeout(60):
                    while not {message.id for message in sent} <= set(inbox.ids):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)

    asyncio.run(run())


def test_a_broker_that_does_not_answer_is_unavailable(private):
    async def run():
        async with Proxy(private.host, private.port) as proxy:
            url = private.url.replace(f":{private.port}", f":{proxy.port}")
            async with transport_on(url, timeout=timedelta(seconds=1)) as transport:
                await transport.publish(envelope())
                proxy.hold()
                with pytest.raises(TransportUnavailableError):
                    await transport.publish(envelope())
                with pytest.raises(TransportUnavailableError):
                    await transport.send("Somewhere", envelope())
                proxy.release()
                await persistently(lambda: transport.publish(envelope()))

    asyncio.run(run())


@pytest.mark.parametrize("scheme", ["amqp", "nats", "redis"])
def test_nothing_listens_there(scheme, caplog):
    async def run():
        transport = transport_on(f"{scheme}://user:{SECRET}@127.0.0.1:9", timeout=timedelta(seconds=3))
        with pytest.raises(TransportUnavailableError) as caught:
            await transport.start()
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        assert SECRET not in repr(transport)
        await transport.close()

    caplog.set_level(logging.DEBUG)
    asyncio.run(run())
    assert SECRET not in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the socket that nats-py leaves open
@pytest.mark.parametrize(("name", "make"), [("nats", private_nats), ("redis-streams", private_redis)])
def test_a_wrong_password_is_refused_and_not_shown(name, make, brokers, tmp_path, caplog):
    try:
        guarded = make(tmp_path, password="r1ght-0ne")
        guarded.start()
    except UnavailableError as error:
        brokers.missing(name, str(error))

    async def run():
        async with transport_on(guarded.url) as transport:
            await transport.publish(envelope())
        await refused(guarded.url.replace("r1ght-0ne", SECRET))

    caplog.set_level(logging.DEBUG)
    try:
        asyncio.run(run())
    finally:
        guarded.kill()
        gc.collect()
    assert SECRET not in caplog.text


def test_a_wrong_password_of_rabbitmq_is_refused_and_not_shown(brokers, caplog):
    url = brokers.url("rabbitmq")
    host = url.rpartition("@")[2]
    caplog.set_level(logging.DEBUG)
    asyncio.run(refused(f"amqp://guest:{SECRET}@{host}"))
    assert SECRET not in caplog.text


async def refused(url):
    transport = transport_on(url, timeout=timedelta(seconds=10))
    with pytest.raises(TransportError) as caught:
        await transport.start()
    assert type(caught.value) is TransportError
    assert not caught.value.retryable
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    await transport.close()
