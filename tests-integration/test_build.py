"""The guard of `hatch run build`: each fault that must not be published is named, and what we build has none."""

import io
import shutil
import tarfile
import zipfile

import pytest

from tools import build, leg
from tools.archives import check_sdist, check_together, check_wheel, extras_of, modules_of, siblings_of
from tools.lonely import check_alone
from tools.workspace import Package

VERSION = "0.1.0"
METADATA = f"Metadata-Version: 2.4\nName: saga-bus-store-toy\nVersion: {VERSION}\n"
GOOD = {
    "saga_bus/store_toy/__init__.py": "",
    "saga_bus/store_toy/_store.py": "",
    "saga_bus/store_toy/py.typed": "",
    f"saga_bus_store_toy-{VERSION}.dist-info/METADATA": METADATA,
    f"saga_bus_store_toy-{VERSION}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"saga_bus_store_toy-{VERSION}.dist-info/RECORD": "",
    f"saga_bus_store_toy-{VERSION}.dist-info/licenses/LICENSE": "MIT",
}


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "store-toy"
    module = folder / "src" / "saga_bus" / "store_toy" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.touch()
    (folder / "pyproject.toml").write_text(f'[project]\nname = "saga-bus-store-toy"\nversion = "{VERSION}"\n')
    return Package(folder)


def make_wheel(folder, files, name="saga_bus_store_toy"):
    wheel = folder / f"{name}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def make_sdist(folder, files):
    sdist = folder / f"saga_bus_store_toy-{VERSION}.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for path in files:
            archive.addfile(tarfile.TarInfo(f"saga_bus_store_toy-{VERSION}/{path}"), io.BytesIO())
    return sdist


def without(name):
    return {path: text for path, text in GOOD.items() if not path.endswith(name)}


def test_a_good_wheel_passes(tmp_path, toy):
    assert check_wheel(make_wheel(tmp_path, GOOD), toy) == []


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({**GOOD, "saga_bus/__init__.py": ""}, "saga_bus/__init__.py: saga_bus is a namespace"),
        ({**GOOD, "saga_bus/store/extra.py": ""}, "owns ['store', 'store_toy'] below saga_bus/, not 'store_toy' alone"),
        ({**GOOD, "saga_bus/loose.py": ""}, "saga_bus/loose.py: neither the package nor its metadata"),
        ({**GOOD, "tests/test_toy.py": ""}, "tests: neither the package nor its metadata"),
        (without("py.typed"), "saga_bus/store_toy/py.typed: missing"),
        (without("LICENSE"), "dist-info/licenses/LICENSE: missing"),
        (without("store_toy/__init__.py"), "saga_bus/store_toy/__init__.py: missing"),
    ],
)
def test_a_doctored_wheel_is_refused_for_its_one_fault(tmp_path, toy, files, problem):
    problems = check_wheel(make_wheel(tmp_path, files), toy)
    assert len(problems) == 1
    assert problem in problems[0]


SDIST = ["src/saga_bus/store_toy/__init__.py", "tests/test_toy.py", "LICENSE", "README.md", "CHANGELOG.md"]
SDIST += ["pyproject.toml", "PKG-INFO"]


def test_a_good_sdist_passes(tmp_path, toy):
    assert check_sdist(make_sdist(tmp_path, SDIST), toy) == []


@pytest.mark.parametrize("name", SDIST)
def test_an_sdist_without_one_of_its_parts_is_refused(tmp_path, toy, name):
    (problem,) = check_sdist(make_sdist(tmp_path, [path for path in SDIST if path != name]), toy)
    assert problem.endswith(f"{'tests/' if name.startswith('tests') else name}: missing")


def test_two_wheels_may_not_own_one_file(tmp_path):
    first, second = make_wheel(tmp_path, GOOD), make_wheel(tmp_path, {"saga_bus/store_toy/_store.py": ""}, name="other")
    (problem,) = check_together([first, second])
    assert "saga_bus/store_toy/_store.py belongs to" in problem


def test_what_a_wheel_needs_and_offers_is_read_from_it(tmp_path):
    metadata = (
        METADATA + "Requires-Dist: saga-bus-store<0.2,>=0.1\nRequires-Dist: msgspec>=0.20\n"
        "Provides-Extra: more\nRequires-Dist: saga-bus-more>=1; extra == 'more'\n"
    )
    files = {**GOOD, f"saga_bus_store_toy-{VERSION}.dist-info/METADATA": metadata, "saga_bus/store_toy/__main__.py": ""}
    wheel = make_wheel(tmp_path, files)
    assert siblings_of(wheel) == ["saga-bus-store"]
    assert extras_of(wheel) == {"more"}
    assert modules_of(wheel) == ["saga_bus.store_toy", "saga_bus.store_toy._store"]


def test_a_wheel_that_imports_what_it_does_not_declare_is_refused(tmp_path):
    files = {**GOOD, "saga_bus/store_toy/_store.py": "import msgspec\n"}
    (problem,) = check_alone(make_wheel(tmp_path, files), {})
    assert "importing saga_bus.store_toy._store alone failed: ModuleNotFoundError" in problem


def test_everything_that_we_build_may_be_published(tmp_path, capsys):
    assert build.main(["--out", str(tmp_path / "dist")]) == 0, capsys.readouterr().err
    assert "installs and imports alone" in capsys.readouterr().out


def test_a_problem_is_told_and_makes_the_exit_code_1(tmp_path, capsys, monkeypatch, toy):
    shutil.copy(build.ROOT / "LICENSE", toy.folder)
    monkeypatch.setattr(build, "packages", lambda: [toy])
    assert build.main(["--out", str(tmp_path / "dist")]) == 1
    assert "REFUSED" in capsys.readouterr().err


def test_the_lowest_leg_refuses_a_version_that_is_higher():
    frozen = "msgspec==0.20.0\npytest==8.4.2\nsaga-bus-store @ file:///store.whl\n"
    assert leg.is_lowest("msgspec>=0.20", frozen)
    assert leg.is_lowest("msgspec>=0.20,<1", frozen)
    assert leg.is_lowest("msgspec[yaml]>=0.20", frozen)
    assert not leg.is_lowest("pytest>=8.4", frozen)
    assert not leg.is_lowest("hypothesis>=6.142", frozen)


def test_the_lowest_leg_asks_for_everything_that_is_declared():
    requirements = leg.third_party_requirements()
    assert {"msgspec", "pytest", "hypothesis"} <= {need.partition(">=")[0] for need in requirements}
    assert all(">=" in need and not need.startswith("saga-bus-") for need in requirements)
