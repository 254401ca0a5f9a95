"""The ODBC drivers of this machine, and an endpoint that speaks just enough TDS to make them report errors.

The endpoint is no SQL Server: it lets a client log in, shows what was sent, and answers each request with the
tokens that a test gives it. So the texts, numbers and SQLSTATEs that a driver makes of a server's error are the
driver's own.
"""

from __future__ import annotations

import platform
import socket
import struct
import sys
from contextlib import suppress
from threading import Thread, local
from urllib.parse import quote

import pytest

from providers.skipping import skip_unless_required
from providers.sqlserver import microsofts_driver
from saga_bus.store import SagaStoreError
from saga_bus.store_sqlserver._odbc import load


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("providers.plugin")


_LOGIN, _RPC, _ATTENTION, _TRANSACTION, _PRELOGIN = 0x10, 0x03, 0x06, 0x0E, 0x12
_LAST = 0x01
_EXECUTE, _UNPREPARE = 12, 15
_PACKET = 4096 - 8
_COLLATION = b"\x09\x04\xd0\x00\x34"


def _short(text: str) -> bytes:
    return struct.pack("<B", len(text)) + text.encode("utf-16-le")


def _done(count: int | None = None, *, token: int = 0xFD, command: int = 0, failed: bool = False) -> bytes:
    more = 0x01 if token == 0xFF else 0
    status = more | (0x02 if failed else 0) | (0x10 if count is not None else 0)
    return struct.pack("<BHHQ", token, status, command, count or 0)


def counted(count: int) -> bytes:
    """The end of a statement that wrote rows."""
    return _done(count, token=0xFF, command=0xC5)


def settled() -> bytes:
    """The end of a statement that only set something, such as a lock timeout."""
    return _done(token=0xFF)


def error(number: int, text: str, *, severity: int = 14) -> bytes:
    """An error that ends a statement."""
    body = struct.pack("<IBB", number, 1, severity)
    body += (
        struct.pack("<H", len(text)) + text.encode("utf-16-le") + _short("server") + _short("") + struct.pack("<I", 1)
    )
    return struct.pack("<BH", 0xAA, len(body)) + body + _done(token=0xFF, failed=True)


def _turned(number: int, *, begins: bool) -> bytes:
    there, gone = b"\x08" + b"\x01" * 8, b"\x00"
    change = bytes([number]) + (there + gone if begins else gone + there)
    return struct.pack("<BH", 0xE3, len(change)) + change


def rolled_back() -> bytes:
    """What goes before an error with which the server ended the transaction."""
    return _turned(10, begins=False)


def numbers(name: str, *values: int) -> bytes:
    """A result with one column of numbers."""
    column = struct.pack("<IHBB", 0, 0x01, 0x26, 4) + _short(name)
    rows = b"".join(struct.pack("<BBi", 0xD1, 4, value) for value in values)
    return struct.pack("<BH", 0x81, 1) + column + rows + _done(len(values), token=0xFF, command=0xC1)


def texts(name: str, *values: str) -> bytes:
    """A result with one column of nvarchar(max)."""
    column = struct.pack("<IHBH", 0, 0x01, 0xE7, 0xFFFF) + _COLLATION + _short(name)
    rows = b""
    for value in values:
        raw = value.encode("utf-16-le")
        rows += struct.pack("<BQI", 0xD1, len(raw), len(raw)) + raw + struct.pack("<I", 0)
    return struct.pack("<BH", 0x81, 1) + column + rows + _done(len(values), token=0xFF, command=0xC1)


def rows(*pairs: tuple[int, str]) -> bytes:
    """A result with a number and an nvarchar(max) in each row."""
    columns = struct.pack("<IHBB", 0, 0x01, 0x26, 4) + _short("number")
    columns += struct.pack("<IHBH", 0, 0x01, 0xE7, 0xFFFF) + _COLLATION + _short("state")
    found = b""
    for number, text in pairs:
        raw = text.encode("utf-16-le")
        found += struct.pack("<BBi", 0xD1, 4, number)
        found += struct.pack("<QI", len(raw), len(raw)) + raw + struct.pack("<I", 0)
    return struct.pack("<BH", 0x81, 2) + columns + found + _done(len(pairs), token=0xFF, command=0xC1)


def pairs(*found: tuple[str, str]) -> bytes:
    """A result with two short nvarchars in each row."""
    one = struct.pack("<IHBH", 0, 0x01, 0xE7, 514) + _COLLATION
    columns = one + _short("saga_name") + one + _short("saga_id")
    body = b""
    for texts_of_row in found:
        raws = [text.encode("utf-16-le") for text in texts_of_row]
        body += b"\xd1" + b"".join(struct.pack("<H", len(raw)) + raw for raw in raws)
    return struct.pack("<BH", 0x81, 2) + columns + body + _done(len(found), token=0xFF, command=0xC5)


def table(*rows: tuple[int | str, ...]) -> bytes:
    """A result of numbers and texts, of which the first row tells the types."""
    first = rows[0] if rows else (0,)
    columns, found = struct.pack("<BH", 0x81, len(first)), b""
    for number, value in enumerate(first):
        columns += struct.pack("<IH", 0, 0x01) + (
            b"\x26\x08" if isinstance(value, int) else b"\xe7\xff\xff" + _COLLATION
        )
        columns += _short(f"column{number}")
    for row in rows:
        found += b"\xd1"
        for value in row:
            if isinstance(value, int):
                found += struct.pack("<Bq", 8, value)
            else:
                raw = value.encode("utf-16-le")
                found += struct.pack("<QI", len(raw), len(raw)) + raw + (struct.pack("<I", 0) if raw else b"")
    return columns + found + _done(len(rows), token=0xFF, command=0xC1)


def _called(result: bytes, handle: int) -> bytes:
    value = struct.pack("<BH", 0xAC, 0) + _short("") + struct.pack("<BIHBBBi", 1, 0, 0, 0x26, 4, 4, handle)
    return result + struct.pack("<Bi", 0x79, 0) + value + _done(token=0xFE)


def is_reset(text: str) -> bool:
    """Whether a request only sets the lock timeout back, as after a group that went wrong."""
    return "LOCK_TIMEOUT -1" in text and "LOCK_TIMEOUT 50" not in text and "NOCOUNT" not in text


class Endpoint:
    """Listens on a free port of the loopback address, one thread for each client, until it is closed.

    Args:
        answer: Gives the tokens for a statement, by its text; None closes the connection, ... never answers.
        refusal: What a login is answered with, instead of being let in.
    """

    def __init__(self, answer=lambda text: b"", refusal: bytes | None = None) -> None:
        self.answer = answer
        self.refusal = refusal
        self.is_babelfish = False
        self.requests: list[str] = []
        self.transact = lambda step: None  # is told of BEGIN, COMMIT and ROLLBACK
        self.sent = bytearray()
        self._current = local()
        self._prepared: list[str] = []
        self.logins: list[dict[str, str]] = []
        self.login_packets: list[bytes] = []
        self.cancelled = 0
        self.released = 0  # statements that a driver prepared and then let go
        self._clients: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """Cut all connections, as a server that is killed does."""
        for client in self._clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._clients.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                thread = Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, EOFError):
            while True:
                kind, body = self._receive(client)
                tokens = self._tokens(kind, body)
                if tokens is None:
                    return
                if tokens is not ...:
                    self._send(client, tokens)

    @property
    def body(self) -> bytes:
        """The request that is being answered, without its packets."""
        return self._current.body

    def asks_for(self, text: str) -> bool:
        """Whether the request that is being answered has a value."""
        return text.encode("utf-16-le") in self.body

    def _tokens(self, kind: int, body: bytes):
        self._current.body = body
        if kind == _PRELOGIN:
            # version, "no encryption", no instance, no thread, no MARS: five options, their offsets, their values
            values = (b"\x10\x00\x0f\xa0\x00\x00", b"\x02", b"\x00", b"\x00" * 4, b"\x00")
            offset, head, tail = 5 * 5 + 1, b"", b""
            for option, value in enumerate(values):
                head += struct.pack(">BHH", option, offset + len(tail), len(value))
                tail += value
            return head + b"\xff" + tail
        if kind == _LOGIN:
            self.logins.append(_login_of(body))
            self.login_packets.append(body)
            if self.refusal is not None:
                return self.refusal + _done(failed=True)
            ack = struct.pack(">BI", 1, 0x74000004) + _short("Microsoft SQL Server") + b"\x10\x00\x0f\xa0"
            size = b"\x04" + _short("4096") + _short("4096")
            collation = b"\x07\x05\x09\x04\xd0\x00\x34\x00"
            changes = b"".join(struct.pack("<BH", 0xE3, len(body)) + body for body in (collation, size))
            return changes + struct.pack("<BH", 0xAD, len(ack)) + ack + _done()
        if kind == _ATTENTION:
            self.cancelled += 1
            # the end of the statement that was stopped, and the acknowledgement
            return _done(failed=True) + struct.pack("<BHHQ", 0xFD, 0x20, 0, 0)
        if kind == _TRANSACTION:
            return self._transact(body)
        self.sent += body
        if kind == _RPC:
            return self._call(body)
        text = _text_of(body)
        self.requests.append(text)
        result = self._result(text)
        return result if result in (None, ...) else result + _done()

    def _transact(self, body: bytes) -> bytes:
        (place,) = struct.unpack_from("<I", body)
        (request,) = struct.unpack_from("<H", body, place)
        name, number = {5: ("BEGIN", 8), 7: ("COMMIT", 9), 8: ("ROLLBACK", 10)}[request]
        self.requests.append(name)
        self.transact(name)
        turned = _turned(number, begins=name == "BEGIN")
        if name != "BEGIN" and body[place + 3 + body[place + 2]] & 0x01:  # and begin the next one, say its flags
            self.transact("BEGIN")
            turned += _turned(8, begins=True)
        return turned + _done()

    def _call(self, body: bytes):
        procedure, handle = _procedure_of(body)
        if procedure == _UNPREPARE:
            self.released += 1
            return _called(b"", handle)
        if procedure == _EXECUTE:
            text = self._prepared[handle - 1]
        else:
            text = _text_of(body)
            self._prepared.append(text)
            handle = len(self._prepared)
        self.requests.append(text)
        result = self._result(text)
        return result if result in (None, ...) else _called(result, handle)

    def _result(self, text: str):
        if "AS alive" in text:
            return numbers("alive", 1)
        if "AS babelfish" in text:
            return numbers("babelfish", int(self.is_babelfish))
        if any(known in text for known in ("sp_datatype_info", "SET NOCOUNT")) or is_reset(text):
            return b""
        return self.answer(text)

    def _receive(self, client: socket.socket) -> tuple[int, bytes]:
        body = bytearray()
        while True:
            kind, status, length = struct.unpack(">BBH", _exactly(client, 4))
            _exactly(client, 4)
            body += _exactly(client, length - 8)
            if status & _LAST:
                return kind, bytes(body)

    def _send(self, client: socket.socket, tokens: bytes) -> None:
        for place in range(0, len(tokens), _PACKET):
            part = tokens[place : place + _PACKET]
            status = _LAST if place + _PACKET >= len(tokens) else 0
            client.sendall(struct.pack(">BBHHBB", 0x04, status, len(part) + 8, 0, 1, 0) + part)


def _exactly(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _login_of(body: bytes) -> dict[str, str]:
    fields = {}
    for number, name in enumerate(("host", "user", "password", "application", "server")):
        offset, length = struct.unpack_from("<HH", body, 36 + 4 * number)
        raw = body[offset : offset + 2 * length]
        if name == "password":  # hidden, not encrypted: halves of each byte swapped, and bits flipped
            raw = bytes(((byte ^ 0xA5) >> 4) | (((byte ^ 0xA5) << 4) & 0xF0) for byte in raw)
        fields[name] = raw.decode("utf-16-le")
    offset, length = struct.unpack_from("<HH", body, 68)
    fields["database"] = body[offset : offset + 2 * length].decode("utf-16-le")
    return fields


def _procedure_of(body: bytes) -> tuple[int, int]:
    (place,) = struct.unpack_from("<I", body)
    name_length, procedure = struct.unpack_from("<HH", body, place)
    if name_length != 0xFFFF:
        return 0, 0
    # the flags, and the first parameter without a name: a 32-bit number, the handle
    given = body[place + 10] if procedure in (_EXECUTE, _UNPREPARE) else 0
    return procedure, struct.unpack_from("<i", body, place + 11)[0] if given else 0


def _text_of(body: bytes) -> str:
    # Texts begin at even and at odd places between binary fields, so both are read.
    return body.decode("utf-16-le", "ignore") + body[1:].decode("utf-16-le", "ignore")


@pytest.fixture
def pyodbc():
    """The module pyodbc; a module of tests that use it otherwise asks for this one, too."""
    try:
        return load()
    except SagaStoreError as error:
        skip_unless_required("odbc", str(error))


@pytest.fixture
def find_driver(pyodbc):
    """Finds an ODBC driver, whose name or library it gives, or ends the test."""

    def find(kind: str) -> str:
        if kind == "microsoft":
            return _microsofts()
        name, package = {"freetds": ("FreeTDS", "tdsodbc"), "sqlite": ("SQLite3", "libsqliteodbc")}[kind]
        if name not in pyodbc.drivers():
            skip_unless_required("odbc", f"the ODBC driver {name} is not registered here; Debian has it in {package}")
        return name

    return find


def _microsofts() -> str:
    found = microsofts_driver()
    if found is None:
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            pytest.skip("PyPI has Microsoft's ODBC driver (mssql-python-odbc) for no machine like this one")
        skip_unless_required("odbc", "Microsoft's ODBC driver is not here; PyPI has it in mssql-python-odbc")
    return found


@pytest.fixture(params=["microsoft", "freetds"])
def driver(request, find_driver) -> str:
    """Each of the two ODBC drivers for SQL Server, as its name or the path of its library."""
    return find_driver(request.param)


@pytest.fixture
def sqlite_driver(find_driver) -> str:
    """SQLite's ODBC driver: another data source for the threads and their connections."""
    return find_driver("sqlite")


@pytest.fixture
def url_of(driver):
    """The URL of a port of this machine for a driver; encryption is off where that is not the default."""

    def make(
        port: int, *, user: str | None = "sa", password: str = "secret", database: str = "", **options: str
    ) -> str:
        options = {"driver": driver, "encrypt": "no", **options}
        query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in options.items())
        login = "" if user is None else f"{quote(user, safe='')}:{quote(password, safe='')}@"
        return f"mssql://{login}127.0.0.1:{port}/{database}?{query}"

    return make


@pytest.fixture
def endpoint():
    """Makes endpoints, and closes them in the end."""
    opened: list[Endpoint] = []

    def make(*args, **options) -> Endpoint:
        opened.append(Endpoint(*args, **options))
        return opened[-1]

    make.error, make.counted, make.numbers, make.texts, make.rows = error, counted, numbers, texts, rows
    make.pairs, make.settled, make.is_reset, make.table = pairs, settled, is_reset, table
    make.rolled_back = rolled_back
    yield make
    for one in opened:
        one.close()


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]
