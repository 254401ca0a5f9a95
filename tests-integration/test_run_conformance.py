"""`hatch run conformance`, and the kit where pytest alone knows the test modules' names."""

import os
import subprocess
import sys
import textwrap

import pytest

from providers import PROVIDERS
from run_conformance.__main__ import main
from run_conformance.targets import TARGETS

NESTED_TESTS = textwrap.dedent(
    """
    import pytest
    from saga_bus.store.conformance import SagaStoreConformance
    from saga_bus.store_sqlite import SqliteSagaStore

    class TestSqlite(SagaStoreConformance):
        @pytest.fixture(autouse=True)
        def file(self, tmp_path):
            self.path = tmp_path / "sagas.db"

        def open_store(self, namespace):
            return SqliteSagaStore(self.path, table=namespace)
    """
)


def test_every_provided_backend_has_a_target():
    assert set(TARGETS) == set(PROVIDERS)


def test_a_backend_is_judged_and_its_report_written(tmp_path, capsys):
    report = tmp_path / "report.json"
    assert main(["inmemory", "--only", "insert", "--json", str(report)]) == 0
    assert "== inmemory" in capsys.readouterr().out
    assert '"store": "InMemorySagaStore"' in report.read_text()


@pytest.mark.parametrize("arguments", [["nothing"], ["--json", "x.json"], ["inmemory", "--only", "nothing"]])
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert capsys.readouterr().err


def test_other_processes_find_a_store_whose_module_has_a_name_of_pytests_own(tmp_path):
    folder = tmp_path / "some-package" / "tests"
    folder.mkdir(parents=True)
    (folder / "test_nested.py").write_text(NESTED_TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "--rootdir", ".", "-k", "processes"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
