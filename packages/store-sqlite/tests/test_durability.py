"""What was acknowledged is there after the process was killed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from saga_bus.store_sqlite import create_schema

ROUNDS = 6
ACKNOWLEDGED = 400  # writes before the kill, which then falls into the middle of others

# Each worker inserts a saga, updates it, and goes on with the next; it reports each write after the store has
# returned, straight to the pipe.
WRITER = """
import asyncio, os, sys
from saga_bus.store import SagaState
from saga_bus.store_sqlite import SqliteSagaStore

class Note(SagaState, kw_only=True):
    text: str = ""

def report(key, version):
    os.write(1, f"{key} {version}\\n".encode())

async def work(store, prefix, number):
    saga = 0
    while True:
        key = f"{prefix}-{number}-{saga}"
        note = Note(text="x" * 700)
        await store.insert("NoteSaga", key, note)
        report(key, 0)
        for version in range(10):
            note = Note(metadata=note.metadata.next(is_completed=version == 9), text=note.text + "y" * 50)
            await store.update("NoteSaga", note, version)
            report(key, version + 1)
        saga += 1

async def run(path, durability, prefix):
    store = SqliteSagaStore(path, durability=durability, busy_timeout=60)
    await asyncio.gather(*(work(store, prefix, number) for number in range(24)))

asyncio.run(run(*sys.argv[1:]))
"""


def killed_writers(path, durability, names, acknowledged):
    """Start a writer for each name and kill them all after so many writes; what they reported."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, durability, name], stdout=subprocess.PIPE)
        for name in names
    ]
    try:
        heads = [b"".join(writer.stdout.readline() for _ in range(acknowledged)) for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
    tails = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [-9] * len(writers)
    reported = {}
    for text in map(bytes.__add__, heads, tails):
        for line in text.decode().splitlines():
            key, version = line.split()
            reported[key] = int(version)
    return reported


def stored_versions(path):
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute(
            "SELECT correlation_id, version, json_extract(state, '$.metadata.version'),"
            " length(json_extract(state, '$.text')), is_completed, json_extract(state, '$.metadata.is_completed')"
            " FROM saga_instances"
        ).fetchall()
    for key, version, document_version, length, completed, document_completed in rows:
        # No row is half-written: columns and document are of one version.
        assert document_version == version, key
        assert length == 700 + 50 * version, key
        assert completed == (document_completed or 0) == (version == 10), key
    return {row[0]: row[1] for row in rows}


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("durability", ["full", "normal"])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path, durability):
    path = tmp_path / "x.db"
    asyncio.run(create_schema(path))
    reported = {}
    for number in range(ROUNDS):
        reported |= killed_writers(path, durability, [f"round-{number}"], ACKNOWLEDGED + 37 * number)
        stored = stored_versions(path)
        late = {key: (version, stored.get(key)) for key, version in reported.items() if stored.get(key, -1) < version}
        assert late == {}
        # A write that was not acknowledged may be there, but it is at most the one that its worker waited for.
        assert all(version <= reported.get(key, -1) + 1 for key, version in stored.items())


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_writers_on_one_file(tmp_path):
    path = tmp_path / "x.db"
    asyncio.run(create_schema(path))
    reported = killed_writers(path, "full", ["left", "right", "third"], 150)
    stored = stored_versions(path)
    assert {key: version for key, version in reported.items() if stored.get(key, -1) < version} == {}
