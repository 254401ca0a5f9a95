"""The benchmark of the bus runs and says what it found; how fast it is, is no matter of a test."""

import json

import pytest

from bench import bus
from bench.cli import main


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_it_compares_and_saves_what_it_found(store, tmp_path, capsys):
    saved = tmp_path / "bus.json"
    main(["--bus", "--store", store, "--sagas", "20", "--repeat", "1", "--no-memory", "--json", str(saved)])
    figures = json.loads(saved.read_text())["figures"]
    assert [(figure["callers"], figure["sends"]) for figure in figures] == [
        (1, False),
        (1, True),
        (64, False),
        (64, True),
    ]
    assert all(figure["bus_per_second"] > 0 < figure["store_per_second"] for figure in figures)
    assert store in capsys.readouterr().out


def test_it_measures_memory_over_many_messages(tmp_path, capsys):
    saved = tmp_path / "bus.json"
    main(["--bus", "--store", "memory", "--sagas", "10", "--repeat", "1", "--messages", "4000", "--json", str(saved)])
    assert len(json.loads(saved.read_text())["memory_mb"]) == 4
    assert "Memory over 4,000 messages" in capsys.readouterr().out


def test_a_missed_target_is_an_exit_code(capsys):
    slow = bus.Figure("memory", sends=False, callers=1, store_per_second=1, bus_per_second=1, overhead=200, work=200)
    good = bus.Figure("memory", sends=False, callers=1, store_per_second=1, bus_per_second=1, overhead=100, work=100)
    assert bus._report([slow], [], 0) == 1
    assert bus._report([good], [10.0, 10.0, 10.0, 30.0], 4) == 1
    assert bus._report([good], [10.0, 10.0, 10.0, 11.0], 4) == 0


def test_an_unknown_store_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--bus", "--store", "paper"])
