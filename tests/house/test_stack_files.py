"""The container stack is closed where it can be: no secrets in files, no root, nothing published beyond loopback."""

from __future__ import annotations

import re

import pytest
import yaml

from pipelines.orchestration.settings import PREFIX, ScheduleSettings
from tests.house.tree import read

COMPOSE = yaml.safe_load(read("docker-compose.yml"))
SERVICES = COMPOSE["services"]
DOCKERFILE = read("Dockerfile")


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_is_hardened(name):
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert "docker.sock" not in str(service.get("volumes", ""))


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_published_is_published_on_loopback_only(name):
    assert [port for port in SERVICES[name].get("ports", []) if not port.startswith("127.0.0.1:")] == []


def test_only_the_front_doors_are_published():
    published = {name for name, service in SERVICES.items() if "ports" in service}

    assert published == {"forecaster", "mlflow", "pipeline-web"}
    assert SERVICES["postgres"]["networks"] == ["store"]
    assert COMPOSE["networks"]["store"]["internal"] is True


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "databases"])
def test_each_container_that_stays_says_how_it_is(name):
    built_in = SERVICES[name].get("build", {}).get("target") == "service"

    assert "healthcheck" in SERVICES[name] or (built_in and "HEALTHCHECK" in DOCKERFILE)


def test_each_container_waits_for_what_it_needs():
    conditions = {
        (name, needed): how["condition"]
        for name, service in SERVICES.items()
        for needed, how in service.get("depends_on", {}).items()
    }

    assert conditions
    assert "service_started" not in conditions.values()


def test_secrets_come_from_the_environment():
    """Every password is interpolated, none has a default, and the example carries no value."""
    text = read("docker-compose.yml")
    uses = re.findall(r"\$\{POSTGRES_PASSWORD[^}]*\}", text)

    assert set(uses) == {"${POSTGRES_PASSWORD:?set it in .env}"}
    assert re.findall(r"://[^:\s]+:(?!\$\{)[^@\s]+@", text) == []
    assert re.search(r"^POSTGRES_PASSWORD=$", read(".env.example"), flags=re.MULTILINE)
    assert ".env" in read(".gitignore").splitlines()
    assert not re.search(r"PASSWORD|SECRET|TOKEN", DOCKERFILE)


def test_the_service_that_others_can_reach_is_given_api_keys():
    """It would not start without."""
    service = SERVICES["forecaster"]

    assert "FORECASTER_HOST=0.0.0.0" in DOCKERFILE
    assert service["environment"]["FORECASTER_API_KEYS_FILE"] == "/run/secrets/api-keys"
    assert service["secrets"] == ["api-keys"]
    assert "/api-keys" in read(".gitignore").splitlines()


def test_the_example_environment_names_every_variable_that_has_to_be_set():
    required = set(re.findall(r"\$\{(\w+):\?", read("docker-compose.yml")))
    offered = set(re.findall(r"^#?(\w+)=", read(".env.example"), flags=re.MULTILINE))

    assert required <= offered


def test_what_can_be_scheduled_can_be_scheduled_in_the_stack():
    """But for a file of settings, which no container has, and the registry, which is the stack's own."""
    passed = SERVICES["pipeline-code"]["environment"]
    known = {f"{PREFIX}{name.upper()}" for name in ScheduleSettings.model_fields}

    assert known - set(passed) == {f"{PREFIX}CONFIG", f"{PREFIX}TRACKING_URI"}
    assert {name for name in passed if name.startswith(PREFIX)} <= known


def test_the_images_run_as_an_ordinary_user_and_start_from_pinned_bases():
    """The user is set in the stage that both images grow from."""
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE))
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, flags=re.MULTILINE))
    final = {stage: base for base, stage in re.findall(r"^FROM (\S+) AS (\S+)", DOCKERFILE, flags=re.MULTILINE)}

    assert bases - stages == {"python:3.11-slim-bookworm"}
    assert (final["service"], final["pipelines"]) == ("base", "base")
    assert "\nUSER forecaster\n" in DOCKERFILE.partition(" AS base\n")[2].partition("\nFROM ")[0]
    assert {service["image"] for service in SERVICES.values()} == {
        "forecaster-service",
        "forecaster-pipelines",
        "postgres:16-bookworm",
    }


def test_the_images_install_the_pinned_versions():
    installs = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if "pip install" in line]

    assert installs
    assert all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs)
