"""The benchmark's harness, on runs too short to mean anything: shape, checks and bad options, no timing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from bench import backends
from bench.cli import main
from bench.figures import (
    STORE,
    MemoryFigure,
    Report,
    check_targets,
    grown,
    growth,
    summarize,
    summarize_locked,
    targets_of,
)
from bench.locked import Held, measure_held
from bench.measure import Measured, drive, percentile
from bench.operations import OPERATIONS, BenchmarkError, Orders
from bench.subjects import Target
from bench.workload import correlation_id_of, saga_id_of, state_of
from providers.postgres import find_program
from providers.skipping import skip_unless_required

# Children import the benchmark, and otherwise what this process imports.
PYTHONPATH = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


def bench(*arguments, module="bench", **environment):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,  # some stores have a server to start for each subject
        check=False,
    )


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bench")
    path, data = directory / "figures.json", directory / "data"
    data.mkdir()
    answer = bench(
        "--rows", "50", "--callers", "1,4", "--seconds", "0.01", "--repeat", "1",
        "--json", path, "--directory", data, "--targets",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert list(data.iterdir()) == []
    return answer.stdout, json.loads(path.read_text())


def test_every_store_and_peer_has_every_figure(tiny_run):
    _, report = tiny_run
    found = {
        (each["store"], each["variant"], each["rows"], each["subject"], each["operation"], each["callers"])
        for each in report["figures"]
    }
    assert found == {
        (name, variant, 50, subject, operation, callers)
        for name in backends.names()
        for variant in backends.load(name).variants
        for subject in (STORE, *backends.load(name).peers)
        for operation in OPERATIONS
        for callers in (1, 4)
    }
    assert {"inmemory", "sqlite"} <= {each["store"] for each in report["figures"]}


def test_a_figure_is_complete_and_the_store_has_a_ratio_to_each_peer(tiny_run):
    _, report = tiny_run
    for figure in report["figures"]:
        assert len(figure["rounds"]) == 1
        assert all(each["operations"] >= 1 for each in figure["rounds"])
        assert figure["per_second"] > 0
        assert figure["cpu_us"] > 0
        assert 0 < figure["p50_us"] <= figure["p99_us"]
        assert figure["peak_mb"] > 1
        peers = set(backends.load(figure["store"]).peers)
        assert set(figure["ratios"]) == (peers if figure["subject"] == STORE else set())
        assert all(ratio > 0 for ratio in figure["ratios"].values())


def test_walks_and_targets(tiny_run):
    _, report = tiny_run
    assert all(walk["sagas"] == walk["rows"] == 50 for walk in report["walks"])
    assert all(walk["growth_mb"] >= 0 for walk in report["walks"])
    assert len(report["walks"]) * len(OPERATIONS) * 2 == len(report["figures"])
    assert report["growth"] == []
    assert len(report["targets"]) == sum(len([*targets_of(backends.load(name))]) for name in backends.names())
    assert any(each["met"] is None for each in report["targets"])  # 1,000,000 sagas, for one


def test_the_report_says_where_and_with_what_it_was_made(tiny_run):
    printed, report = tiny_run
    machine = report["machine"]
    assert machine["date"].endswith("+00:00")
    assert machine["cpus"] == os.cpu_count()
    assert {"SQLite", "aiosqlite", "msgspec", "saga-bus-store-sqlite"} <= set(machine["versions"])
    assert report["fsync"]["p50_us"] > 0
    assert report["parameters"]["rows"] == [50]
    assert report["parameters"]["seconds"] == 0.01
    for words in (machine["python"], f"SQLite {machine['versions']['SQLite']}", "fsync", "Targets", "not in this run"):
        assert words in printed


def test_options_choose_what_runs(tmp_path):
    path, picture = tmp_path / "figures.json", tmp_path / "out.png"
    answer = bench(
        "--store", "inmemory", "--operations", "update", "--callers", "2", "--rows", "10,20", "--active", "5",
        "--ops", "7", "--repeat", "2", "--json", path, "--plot", picture,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    report = json.loads(path.read_text())
    assert [
        (each["rows"], each["subject"], [each["operations"] for each in each["rounds"]]) for each in report["figures"]
    ] == [(10, STORE, [8, 8]), (10, "dict", [8, 8]), (20, STORE, [8, 8]), (20, "dict", [8, 8])]
    assert [(each["subject"], each["fewest"], each["most"]) for each in report["growth"]] == [
        (STORE, 10, 20),
        ("dict", 10, 20),
    ]
    assert report["walks"] == []
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "oracle"], "unknown store 'oracle'"),
        (["--store", "sqlite,"], "empty name"),
        (["--operations", "delete"], "unknown operation 'delete'"),
        (["--variants", "fast"], "unknown variant 'fast'"),
        (["--callers", "0"], "'0' is no whole number of at least 1"),
        (["--rows", "many"], "'many' is no whole number"),
        (["--rows", "10"], "32 callers need as many sagas"),
        (["--seconds", "-1"], "'-1' is no time"),
        (["--seconds", "1", "--ops", "5"], "not allowed with"),
        (["--json", "no/such/place.json"], "cannot be written"),
        (["--directory", "no/such/place"], "is no directory"),
        (["--memory", "0"], "'0' is no whole number of at least 1"),
        (["--memory", "5", "--operations", "find"], "not allowed with"),
        (["--memory", "5", "--locked"], "not allowed with"),
        (["--memory", "5", "--callers", "1,4"], "there is one number of callers"),
        (["--memory", "5", "--store", "inmemory", "--plot", "out.png"], "it draws operations, and there are none"),
        (["--locked", "--store", "inmemory"], "inmemory has no way to hold a row locked"),
        (["--locked", "--rows", "64"], "65 callers need as many sagas"),
        (["--fast"], "unrecognized arguments"),
    ],
)
def test_bad_options_end_with_two_and_say_why(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


class Broken:
    """A peer of the in-memory store that can be broken in one way."""

    def __init__(self, *, lost=(), stale=False, hole=False):
        self.good = backends.load("inmemory").subject("dict", "memory", Path(), 20)
        self.lost, self.stale, self.hole = lost, stale, hole
        self.writes = 0

    def __getattr__(self, name):
        return getattr(self.good, name)

    async def update(self, state, expected_version):
        self.writes += 1
        if self.writes not in self.lost:
            await self.good.update(state, expected_version)

    async def get_by_id(self, saga_id):
        return state_of(int(saga_id[-12:], 16), 0) if self.stale else await self.good.get_by_id(saga_id)

    async def find(self, cursor, limit):
        states, cursor = await self.good.find(cursor, limit)
        return (states[1:] if self.hole else states), cursor


async def opened(**faults):
    broken = Broken(**faults)
    await broken.good.open()
    return Orders(broken, rows=20, active=20)


async def check_updates(**faults):
    orders = await opened(**faults)
    await drive(orders.steps("update", 1), operations=3)
    await orders.verify()


def test_a_subject_that_works_passes_every_check():
    async def run():
        orders = await opened()
        for operation in OPERATIONS:
            await drive(orders.steps(operation, 4), operations=40)
            await orders.verify()
        assert await orders.walk() == orders.stored == 60

    asyncio.run(run())


def test_a_lost_update_a_stale_read_and_a_missing_saga_fail_the_benchmark():
    with pytest.raises(BenchmarkError, match="20 sagas with 2 updates, expected 20 with 3"):
        asyncio.run(check_updates(lost={3}))
    with pytest.raises(BenchmarkError, match="expected version 1, got"):
        asyncio.run(check_updates(stale=True))

    async def walk():
        await (await opened(hole=True)).walk()

    with pytest.raises(BenchmarkError, match="the walk has 19 sagas"):
        asyncio.run(walk())


def test_aiosqlite_without_a_lock_loses_what_its_callers_believe_to_be_saved(tmp_path):
    """Why the benchmark has a peer with a lock beside the one without."""

    async def acknowledged_and_stored(peer):
        backend = backends.load("sqlite")
        directory = tmp_path / peer
        directory.mkdir()
        await backend.prepare(directory, 10)
        subject = backend.subject(peer, "normal", directory, 10)
        await subject.open()

        async def conflict():
            with pytest.raises(LookupError):
                await subject.update(state_of(0, 8), 7)

        await asyncio.gather(conflict(), *(subject.update(state_of(number, 1), 0) for number in range(1, 10)))
        await subject.close()
        return 9, (await subject.totals())[1]

    assert asyncio.run(acknowledged_and_stored("aiosqlite")) == (9, 0)
    assert asyncio.run(acknowledged_and_stored("aiosqlite+lock")) == (9, 9)


# What a child process meets before anything else, so that it breaks the store in it.
_KEEPS_EVERY_STATE = """
from bench.subjects import StoreSubject
kept, read = [], StoreSubject.get_by_correlation_id
async def keep(self, correlation_id):
    kept.append(await read(self, correlation_id))
    return kept[-1]
StoreSubject.get_by_correlation_id = keep
"""
_LOSES_THE_LAST_UPDATE = """
from itertools import count
from bench.subjects import StoreSubject
number, write = count(1), StoreSubject.update
async def lose(self, state, expected_version):
    if next(number) != 5000:
        await write(self, state, expected_version)
StoreSubject.update = lose
"""


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("", None),
        (_KEEPS_EVERY_STATE, r"bench: inmemory memory, 4 callers: memory grew by \d+\.\d MB, 4\.\d at most"),
        (_LOSES_THE_LAST_UPDATE, "the database has 20 sagas with 4999 updates, expected 20 with 5000"),
    ],
    ids=["good", "keeps every state", "loses the last update"],
)
def test_memory_that_grows_and_a_write_that_is_lost_meanwhile_fail_the_benchmark(
    broken, message, tmp_path, monkeypatch, capsys
):
    (tmp_path / "sitecustomize.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), PYTHONPATH]))
    code = main(["--store", "inmemory", "--memory", "5000", "--callers", "4", "--rows", "20"])
    if message is None:
        assert code == 0
    else:
        assert code == 1
        assert re.search(message, capsys.readouterr().err)


def test_only_a_store_that_grows_beyond_the_bound_has_grown():
    def figure(subject, last):
        return MemoryFigure(
            store="sqlite", variant="full", rows=20, subject=subject, callers=1, operations=10, tenths_mb=[40.0, last]
        )

    figures = [figure(STORE, 39.0), figure(STORE, 44.9), figure(STORE, 45.1), figure("sqlite3", 99.0)]
    assert grown(Report(machine={}, fsync={}, parameters={}, memory=figures)) == [figures[2]]


@pytest.mark.parametrize("store", ["mysql", "postgres"])
def test_memory_on_a_server(store, databases, tmp_path, monkeypatch):
    monkeypatch.setenv(f"SAGA_TEST_{store.upper()}_URL", databases.url(store))
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    path = tmp_path / "figures.json"
    options = ["--callers", "4", "--rows", "20", "--json", str(path)]
    assert main(["--store", store, "--memory", "200", *options]) == 0
    report = json.loads(path.read_text())
    assert [each["subject"] for each in report["memory"]] == [STORE, backends.load(store).peers[0]]
    for figure in report["memory"]:
        assert (figure["callers"], figure["operations"]) == (4, 200)
        assert len(figure["tenths_mb"]) == 10
        assert min(figure["tenths_mb"]) > 10
    assert report["figures"] == report["walks"] == report["locked"] == []


@pytest.mark.parametrize("store", ["mysql", "postgres"])
def test_a_locked_row_on_a_server(store, databases, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(f"SAGA_TEST_{store.upper()}_URL", databases.url(store))
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    path = tmp_path / "figures.json"
    options = ["--callers", "4", "--rows", "20", "--ops", "20", "--repeat", "2", "--targets", "--json", str(path)]
    assert main(["--store", store, "--locked", *options]) == 0
    report = json.loads(path.read_text())
    (figure,) = report["locked"]
    assert [(each["free"]["operations"], each["locked"]["operations"]) for each in figure["rounds"]] == [(20, 20)] * 2
    assert figure["ratio"] > 0
    assert figure["locked_p99_us"] > 0 < figure["free_p99_us"]
    (target,) = [each for each in report["targets"] if "locked" in each["text"]]
    assert target["text"] == "default, 64 callers: p99 of a cycle with another row locked at most 3 x that without"
    assert target["met"] is None  # of 4 callers
    assert "a row locked" in capsys.readouterr().out


class Lockable(Broken):
    """A dict with rows that can be locked.

    Args:
        connections: How many updates can be under way, those included that wait for a row.
        respectful: Whether an update waits for a locked row.
        forgetful: Whether an update that has waited never ends.
    """

    def __init__(self, *, connections=20, respectful=True, forgetful=False):
        super().__init__()
        self.connections = asyncio.Semaphore(connections)
        self.respectful, self.forgetful = respectful, forgetful
        self.rows = defaultdict(asyncio.Lock)

    async def update(self, state, expected_version):
        row = self.rows[state.metadata.saga_id]
        async with self.connections:
            if row.locked() and self.forgetful:
                await asyncio.Event().wait()
            if self.respectful:
                async with row:
                    await self.good.update(state, expected_version)
            else:
                await self.good.update(state, expected_version)


async def check_locked(**faults):
    subject = Lockable(**faults)
    await subject.good.open()
    orders = Orders(subject, rows=20, active=20)
    held = await measure_held(orders, subject.rows.__getitem__, 4, operations=40)
    await orders.verify()
    return held, orders


def test_others_pass_a_locked_row_and_the_one_that_waits_gets_its_turn():
    held, orders = asyncio.run(check_locked())
    assert (held.free.operations, held.locked.operations) == (40, 40)
    assert orders.versions[4] == 1  # which the four callers leave alone
    assert sum(orders.versions) == 1 + 2 * (40 + 8)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"connections": 1}, "other sagas waited for order 4, which is locked elsewhere"),
        ({"respectful": False}, "the update of order 4, which is locked elsewhere, ended"),
        ({"forgetful": True}, "order 4 is locked no more, but its update does not end"),
    ],
)
def test_a_store_that_mistreats_a_locked_row_is_found_out(faults, message, monkeypatch):
    monkeypatch.setattr("bench.locked._PATIENCE", 1.5)
    with pytest.raises(BenchmarkError, match=message):
        asyncio.run(check_locked(**faults))


def test_others_that_a_locked_row_slows_down_miss_the_target():
    class WithLocks:
        name = "postgres"
        variants = ("default",)
        targets = ()

        def locked(self, directory, saga_id):
            raise NotImplementedError

    def measured(p99_us):
        return Measured(10, 1.0, 10.0, 1.0, 1.0, p99_us, 30.0)

    def results(*ratios):
        rounds = [Held(measured(2.0), measured(2.0 * ratio)) for ratio in ratios]
        figure = summarize_locked(("postgres", "default", 100), 64, rounds)
        return check_targets(WithLocks(), Report(machine={}, fsync={}, parameters={}, locked=[figure]))

    assert [(each.measured, each.met) for each in results(9.0, 3.0, 1.0)] == [(3.0, True)]
    assert [(each.measured, each.met) for each in results(9.0, 3.1, 1.0)] == [(3.1, False)]


def test_the_store_beside_pgbench(databases):
    url = databases.url("postgres")
    if not Path(find_program("pgbench")).exists():
        skip_unless_required("postgres", "pgbench is not here")
    answer = bench(
        "--rows", "20", "--callers", "2", "--seconds", "0.2", "--repeat", "1",
        module="bench.postgres", SAGA_TEST_POSTGRES_URL=url,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["get", "cycle"]
    for line in lines:
        found = re.search(r"2 callers: store +([\d,]+)/s +pgbench +([\d,]+)/s +ratio [\d.]+$", line)
        assert all(int(rate.replace(",", "")) > 0 for rate in found.groups())


def test_callers_share_no_saga():
    async def run():
        orders = await opened()
        touched = []
        for caller in range(3):
            pick = orders._numbers(caller, 3)
            touched.append({pick() for _ in range(200)})
        assert sum(map(len, touched)) == len(set.union(*touched)) == 18

    asyncio.run(run())


def test_orders_are_distinct_and_about_one_kilobyte():
    assert 900 < len(msgspec.json.encode(state_of(7, 3))) < 1100
    assert len({saga_id_of(number) for number in range(5000)}) == 5000
    assert len({correlation_id_of(number) for number in range(5000)}) == 5000
    ids = [saga_id_of(number) for number in (0, 9, 10, 255, 256, 999_999)]
    assert ids == sorted(ids)


def test_percentiles_are_nearest_rank():
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([4.0], 0.99) == 4


def test_ratios_are_the_median_of_the_rounds_own_ratios():
    def rounds(*throughputs):
        return [Measured(10, 1.0, each, 1.0, 1.0, 2.0, 30.0) for each in throughputs]

    figures = summarize(
        ("sqlite", "full", 1000),
        "update",
        32,
        {STORE: rounds(100.0, 50.0, 90.0), "aiosqlite": rounds(10.0, 10.0, 10.0)},
    )
    assert figures[0].ratios == {"aiosqlite": 9.0}
    assert figures[0].per_second == 90
    assert figures[1].ratios == {}
    more = summarize(("sqlite", "full", 4000), "update", 32, {STORE: rounds(45.0)})
    assert [(each.fewest, each.most, each.ratio) for each in growth(figures + more)] == [(1000, 4000, 0.5)]


def test_targets_are_compared_with_the_figures():
    class Two:
        name = "inmemory"
        targets = (
            Target("ratio", 2, "update", "memory", peer="dict"),
            Target("throughput", 1000, "update", "memory"),
            Target("growth", 0.75, "update", "memory", rows=1_000_000),
        )

    rounds = {
        STORE: [Measured(1, 1.0, 900.0, 1.0, 1.0, 1.0, 1.0)],
        "dict": [Measured(1, 1.0, 300.0, 1.0, 1.0, 1.0, 1.0)],
    }
    report = Report(
        machine={}, fsync={}, parameters={}, figures=summarize(("inmemory", "memory", 10), "update", 1, rounds)
    )
    results = check_targets(Two(), report)
    assert [(each.measured, each.met) for each in results] == [(3.0, True), (900.0, False), (None, None)]
    assert results[0].text == "memory, 1 caller: update at least 2 x dict"
