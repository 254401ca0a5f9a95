"""The workflows ask for little, pin what they run and leave no package or backend out."""

import re

import pytest
import yaml

from providers import BROKER_NAMES, EQUIPMENT_NAMES, PROVIDERS
from tools.workspace import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def ci_jobs():
    return load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_may_read_and_no_more(path):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 30
        assert "permissions" not in job


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit_and_says_its_version(path):
    uses = re.findall(r"uses: *(.*)", path.read_text(encoding="utf-8"))
    assert uses
    for use in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use


def test_every_python_is_tested():
    assert ci_jobs()["test"]["strategy"]["matrix"]["python"] == PYTHONS


def test_every_backend_proves_itself():
    assert sorted(ci_jobs()["conformance"]["strategy"]["matrix"]["backend"]) == sorted(PROVIDERS)


def text_of(job):
    """What a job's steps run, a line for each command."""
    return "\n".join(step["run"] for step in job["steps"] if "run" in step)


# Of each server the images that are tested, the oldest and the newest that the store is made for.
IMAGES = {
    "dynamodb": {"amazon/dynamodb-local:2.5.2"},
    "mongodb": {"mongo:7", "mongo:8"},
    "mysql": {"mysql:8.4", "mariadb:11"},
    "postgres": {"postgres:13", "postgres:18"},
    "prisma": {"postgres:18"},
    "redis": {"redis:7", "valkey/valkey:8"},
    "redis_cluster": {"redis:7", "valkey/valkey:8"},
    "sqlserver": {"mcr.microsoft.com/mssql/server:2022-latest"},
}


def test_every_image_of_a_server_is_tested():
    jobs = ci_jobs()
    found = {}
    for name in IMAGES:
        job = jobs[name]
        # A service container, or one that a step starts, because it needs arguments.
        image = job["services"]["server"]["image"] if "services" in job else "${{ matrix.image }}"
        assert "services" in job or re.search(r"docker run .*(\$\{\{ matrix\.image }}|\$image)", text_of(job))
        from_matrix = image == "${{ matrix.image }}"
        found[name] = set(job["strategy"]["matrix"]["image"]) if from_matrix else {image}
        assert not {"include", "exclude"} & job.get("strategy", {}).get("matrix", {}).keys()
    assert found == IMAGES
    assert set(IMAGES) == set(PROVIDERS) - {"inmemory", "sqlite"}  # which have no server


@pytest.mark.parametrize("backend", IMAGES)
def test_a_server_meets_its_package_and_the_kit(backend):
    """Each job requires its backend, has the URL of its server, and runs the package's tests and the kit's report."""
    job = ci_jobs()[backend]
    server = "postgres" if backend == "prisma" else backend
    assert backend in job["env"]["SAGA_TEST_REQUIRE"].split(",")
    url = f"SAGA_TEST_{server.upper()}_URL"
    assert url in job["env"] or f'echo "{url}=' in text_of(job)
    folder = "redis" if backend == "redis_cluster" else backend
    words = text_of(job).split()
    assert f"packages/store-{folder}" in words
    assert re.search(rf"hatch run conformance {backend}$", text_of(job), re.MULTILINE)
    for name in ("faults", "docs", "server"):
        file = f"tests-integration/test_{backend}_{name}.py"
        if (ROOT / file).exists() and "databases.url(" in (ROOT / file).read_text(encoding="utf-8"):
            assert file in words


def test_sql_server_is_tested_with_both_drivers_killed_and_measured():
    job = ci_jobs()["sqlserver"]
    assert set(job["strategy"]["matrix"]["driver"]) == {"microsoft", "FreeTDS"}
    assert {"unixodbc", "tdsodbc", "libsqliteodbc"} <= set(text_of(job).split())
    assert "driver=${{ matrix.driver }}" in text_of(job)
    assert "?driver=$driver&" in text_of(job)
    # A container that is started again has its port again only where that is a fixed one.
    assert job["services"]["server"]["ports"] == ["1433:1433"]
    assert 'echo "SAGA_TEST_SQLSERVER_CONTAINER=${{ job.services.server.id }}" >> "$GITHUB_ENV"' in text_of(job)
    assert "hatch run bench --store sqlserver" in text_of(job)


def test_both_engines_of_prisma_are_tested():
    job = ci_jobs()["prisma"]
    assert set(job["strategy"]["matrix"]["engine"]) == {"native", "wasm"}
    assert job["env"]["SAGA_TEST_PRISMA_ENGINE"] == "${{ matrix.engine }}"


def test_every_broker_has_its_images():
    legs = ci_jobs()["transports"]["strategy"]["matrix"]["include"]
    images = {re.search(r"\S+:\S+(?= |$)", leg["container"].split(maxsplit=2)[2])[0] for leg in legs}
    assert images == {"rabbitmq:3.13", "rabbitmq:4.1", "nats:2.11-alpine", "redis:8", "apache/kafka:4.0.0"}


def test_what_needs_no_container_is_required_on_every_machine():
    """The script of the machines that have none leaves out SQL Server alone, and not the drivers for it."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (required,) = re.findall(r"^export SAGA_TEST_REQUIRE=(\S+)$", script, re.MULTILINE)
    assert sorted(required.split(",")) == sorted({*PROVIDERS, *BROKER_NAMES, *EQUIPMENT_NAMES} - {"sqlserver"})
    assert ci_jobs()["test"]["env"]["SAGA_TEST_REQUIRE"] == "all"


def test_every_broker_is_tested():
    tested = {leg["broker"] for leg in ci_jobs()["transports"]["strategy"]["matrix"]["include"]}
    assert tested == BROKER_NAMES


def test_built_wheels_and_the_lowest_versions_are_tested():
    assert ci_jobs()["wheels"]["strategy"]["matrix"]["leg"] == ["wheels", "lowest"]


def test_dependabot_watches_actions_and_packages():
    updates = load(ROOT / ".github" / "dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "pip"}
