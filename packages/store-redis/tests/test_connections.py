"""Other ways to a server: a Unix socket, TLS, another database, another event loop."""

import asyncio
import datetime as dt
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from providers import UnavailableError
from providers.ports import free_port
from providers.redis import PrivateRedis, private_redis
from redis_helpers import NAME, state, store_on
from saga_bus.store import StoreUnavailableError


async def works(url, prefix):
    async with store_on(url, prefix) as store:
        await store.create_schema()
        await store.insert(NAME, "order-1", state("a"))
        assert (await store.get_by_correlation_id(NAME, "order-1")).metadata.saga_id == "a"
        await store.drop_schema()


def test_a_unix_socket(server, prefix):
    asyncio.run(works(f"unix://{server.socket}?db=1", prefix))


def test_databases_are_apart(server, prefix):
    async def run():
        async with store_on(f"redis://127.0.0.1:{server.port}/3", prefix) as store:
            await store.create_schema()
            await store.insert(NAME, "order-1", state("a"))
            await works(f"redis://127.0.0.1:{server.port}/4", prefix)
            assert await store.get_by_id(NAME, "a") is not None
            await store.drop_schema()

    asyncio.run(run())


def certificate(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "saga-bus tests")])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    pem = serialization.Encoding.PEM
    (folder / "tls.crt").write_bytes(made.public_bytes(pem))
    (folder / "tls.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))


def test_tls_and_a_certificate_that_nobody_vouches_for(tmp_path, prefix):
    certificate(tmp_path)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(tmp_path / "tls.crt")]
    options += ["--tls-cert-file", str(tmp_path / "tls.crt"), "--tls-key-file", str(tmp_path / "tls.key")]
    server = PrivateRedis(tmp_path, options)
    try:
        server.start()
    except UnavailableError as error:
        pytest.skip(f"this server speaks no TLS: {error}")
    try:
        asyncio.run(works(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'tls.crt'}", prefix))
        with pytest.raises(StoreUnavailableError):
            asyncio.run(works(f"rediss://127.0.0.1:{port}/0", prefix))
    finally:
        server.stop()


def test_idle_connections_that_the_server_closed_cost_nothing(prefix):
    async def run():
        with private_redis() as server:
            async with store_on(server.url, prefix) as store:
                await store.create_schema()
                for version in range(3):
                    if version == 0:
                        await store.insert(NAME, "order-1", state("a"))
                    else:
                        await store.update(NAME, state("a", version), version - 1)
                    server.ask("CLIENT", "KILL", "TYPE", "normal")
                    await asyncio.sleep(0.05)  # until the event loop knows
            server.stop()

    asyncio.run(run())


def test_an_answer_that_nobody_read_is_not_the_next_one(server, prefix):
    async def run():
        async with store_on(server.url, prefix) as store:
            await store.create_schema()
            await store.insert(NAME, "order-1", state("a"))
            (kept,) = store._route._server._kept
            kept._reader.feed_data(b"$-1\r\n")
            assert await store.get_by_id(NAME, "a") is not None
            assert await store.get_by_id(NAME, "b") is None

    asyncio.run(run())


def test_a_store_of_one_event_loop_after_another(url, prefix):
    async def run():
        await works(url, prefix)

    asyncio.run(run())
    asyncio.run(run())
