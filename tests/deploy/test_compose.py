"""The container files without a container engine: every file, option and version that they name must exist."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser
from ruamel.yaml import YAML
from typer.testing import CliRunner

from anabranch.cli import app
from anabranch.flink_job.config import load
from anabranch.schemas.limits import DEFAULT_MESSAGE_BYTES

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    compose = YAML(typ="safe").load(COMPOSE)
    return dict(compose["services"])


def instructions(name: str) -> list[str]:
    with DOCKERFILE.open("rb") as file:
        return [part["value"] for part in DockerfileParser(fileobj=file).structure if part["instruction"] == name]


@pytest.mark.slow
def test_compose_file_follows_the_specification() -> None:
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_dockerfile_passes_hadolint() -> None:
    done = subprocess.run([BIN / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_ports_are_local(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not any("network_mode" in service or service.get("privileged") for service in services.values())


def test_compose_services_have_health_checks(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"job"}
    for service in services.values():
        for name, dependency in service.get("depends_on", {}).items():
            assert dependency["condition"] == "service_healthy"
            assert "healthcheck" in services[name]


def test_compose_task_managers_have_a_slot_per_task(services: dict[str, dict[str, Any]]) -> None:
    assert services["taskmanager"]["scale"] == load(ROOT / "deploy" / "anabranch.toml").job.parallelism == 2


@pytest.mark.parametrize("service", ["jobmanager", "taskmanager", "job", "gateway"])
def test_compose_commands_have_their_options(services: dict[str, dict[str, Any]], service: str) -> None:
    command, *arguments = services[service]["command"]
    help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert help_text.exit_code == 0, f"there is no `anabranch {command}`"
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert re.search(rf"{option}\b", help_text.output), f"`anabranch {command}` has no {option}"


def test_compose_monitoring_is_asked_for_and_watches_the_gateway(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "profiles" in service} == {"prometheus", "grafana"}
    yaml, folder = YAML(typ="safe"), ROOT / "deploy" / "monitoring"
    [scrape] = yaml.load(folder / "compose.yml")["scrape_configs"]
    command = services["gateway"]["command"]
    assert scrape["static_configs"][0]["targets"] == [f"gateway:{command[command.index('--http-port') + 1]}"]
    [source] = yaml.load(folder / "grafana/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    interval = yaml.load(folder / "compose.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


def test_compose_files_of_monitoring_exist_where_they_are_read(services: dict[str, dict[str, Any]]) -> None:
    mounts = {}
    for name in ("prometheus", "grafana"):
        for source, target in (volume.removesuffix(":ro").split(":") for volume in services[name]["volumes"]):
            assert not source.startswith(".") or (ROOT / source).exists(), source
            mounts[target] = source
    flag = services["prometheus"]["command"][0]
    assert flag.removeprefix("--config.file=") in mounts
    yaml = YAML(typ="safe")
    rules = yaml.load(ROOT / "deploy/monitoring/compose.yml")["rule_files"]
    assert all(f"/etc/prometheus/{name}" in mounts for name in rules)
    [provider] = yaml.load(ROOT / "deploy/monitoring/grafana/dashboards/anabranch.yml")["providers"]
    assert any(target.startswith(f"{provider['options']['path']}/") for target in mounts)


def test_compose_broker_is_the_tested_one(services: dict[str, dict[str, Any]]) -> None:
    version = re.search(r"org\.apache\.kafka:kafka_2\.13:(\S+)", (ROOT / "deploy" / "jars.lock").read_text())
    assert version is not None
    assert services["kafka"]["image"] == f"apache/kafka:{version.group(1)}"
    limit = int(services["kafka"]["environment"]["KAFKA_MESSAGE_MAX_BYTES"])
    assert limit == int(services["kafka"]["environment"]["KAFKA_REPLICA_FETCH_MAX_BYTES"])
    assert limit >= DEFAULT_MESSAGE_BYTES + 64 * 1024


def test_configuration_fits_the_containers(services: dict[str, dict[str, Any]]) -> None:
    config = load(ROOT / "deploy" / "anabranch.toml")
    assert config.kafka.bootstrap_servers in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    for service in ("jobmanager", "taskmanager", "job"):
        mounts = dict(volume.rsplit(":/", 1) for volume in services[service]["volumes"])
        assert mounts["${ANABRANCH_MODELS:-./models}"] == config.models.repository[1:] + ":ro"
        assert config.job.checkpoint_dir == f"file:///{mounts['checkpoints']}"
    assert config.job.checkpoint_dir.removeprefix("file://") in DOCKERFILE.read_text()


def test_dockerfile_sources_reach_the_builder() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [value.split() for value in instructions("COPY") if not value.startswith("--from")]
    sources = [source for *sources, _ in copies for source in sources]
    assert len(sources) > 8
    for source in sources:
        assert (ROOT / source).exists(), f"{source} does not exist"
        assert source in let_in, f".dockerignore keeps {source} out"


def test_dockerfile_copies_every_package() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "bench", "examples", "deploy"}
    copied = {value.split()[0] for value in instructions("COPY")}
    assert packages <= copied


def test_image_runs_a_locked_python(services: dict[str, dict[str, Any]]) -> None:
    assert {image.split()[0] for image in instructions("FROM")} == {"python:3.11-slim-bookworm"}
    assert "python_version >= '3.11' and python_version < '3.13'" in (ROOT / "pyproject.toml").read_text()
    assert "openjdk-17-jre-headless" in DOCKERFILE.read_text()
    assert instructions("ENTRYPOINT") == ['["anabranch"]']
    assert instructions("USER") == ["10001"]
