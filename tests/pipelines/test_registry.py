"""Versions, aliases and rollbacks in a real MLflow registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from forecaster import ArtifactError, InputError, Panel
from pipelines import registry
from pipelines.connection import RegistryError, connect
from pipelines.loading import load_model
from pipelines.promotion import Decision
from pipelines.tracking import PAUSE, TrainingRun, start_run
from tests.pipelines.kit import random_forecaster

NAME = "demand"
YES, NO = Decision(promoted=True, reasons=("better",)), Decision(promoted=False, reasons=("worse",))


@pytest.fixture
def client(tracking_uri: str, panel: Panel) -> MlflowClient:
    """A registry with three versions of one model, none judged yet."""
    client = connect(tracking_uri)
    for seed in range(3):
        with start_run(client, NAME, tracking_uri=tracking_uri) as run:
            uri = run.log_model(random_forecaster(seed), panel)
        registry.register(client, NAME, uri, run_id=run.run_id)
    return client


def aliases(client: MlflowClient) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def tags(client: MlflowClient, version: str) -> dict[str, str]:
    return dict(client.get_model_version(NAME, version).tags)


def test_the_registry_keeps_versions_and_moves_aliases_as_decided(client: MlflowClient, tracking_uri: str) -> None:
    """One story, because logging models takes seconds: judged, refused, forced, rolled back, listed, loaded."""
    assert aliases(client) == {"challenger": "3"}

    registry.apply_decision(client, NAME, "1", YES)
    assert aliases(client) == {"challenger": "3", "champion": "1"}
    with pytest.raises(InputError, match="no champion before version 1"):
        registry.rollback(client, NAME)

    registry.apply_decision(client, NAME, "2", NO)
    assert aliases(client)["champion"] == "1"
    assert tags(client, "2")["promotion.status"] == "refused"
    assert tags(client, "2")["promotion.reason"] == "worse"
    assert tags(client, "2")["promotion.compared_with"] == "1"

    with pytest.raises(InputError, match=r"refused version 2.*worse.*--force"):
        registry.promote(client, NAME, "2")
    for same in ("1", "01"):
        with pytest.raises(InputError, match=r"version 1 .* is the champion already"):
            registry.promote(client, NAME, same)
    assert registry.promote(client, NAME, "2", force=True) == "2"
    assert "against the gate" in tags(client, "2")["promotion.reason"]
    assert aliases(client) == {"challenger": "3", "champion": "2", "previous": "1"}

    assert registry.promote(client, NAME) == "3"
    assert aliases(client) == {"challenger": "3", "champion": "3", "previous": "2"}
    assert registry.rollback(client, NAME) == ("2", "3")
    assert aliases(client) == {"challenger": "3", "champion": "2", "previous": "1"}
    assert tags(client, "3")["promotion.status"] == "rolled back"
    assert registry.rollback(client, NAME) == ("1", "2")
    assert aliases(client) == {"challenger": "3", "champion": "1"}
    with pytest.raises(InputError, match=r"refused version 2.*worse.*--force"):  # whatever was forced since
        registry.promote(client, NAME, "2")

    listed = registry.versions(client, NAME)
    assert [(str(row.version), sorted(row.aliases)) for row in listed] == [
        ("3", ["challenger"]),
        ("2", []),
        ("1", ["champion"]),
    ]
    assert registry.versions(client, "nobody") == registry.versions(client, "it's") == []

    for reference, version, seed in ((f"models:/{NAME}@champion", "1", 0), (f"models:/{NAME}/3", "3", 2)):
        loaded = load_model(reference, tracking_uri)
        assert (loaded.name, loaded.version) == (NAME, version)
        assert loaded.forecaster.fingerprint() == random_forecaster(seed).fingerprint()
    logged = client.get_model_version(NAME, "2").source
    assert logged.startswith("models:/m-")
    assert load_model(logged, tracking_uri).forecaster.fingerprint() == random_forecaster(1).fingerprint()

    for weights in Path(tracking_uri.removeprefix("sqlite:///")).parent.rglob("weights.safetensors"):
        weights.write_bytes(b"rubbish")
    with pytest.raises(ArtifactError, match=f"^artifact models:/{NAME}/1 is damaged: weights"):
        load_model(f"models:/{NAME}@champion", tracking_uri)


def test_a_refusal_holds_until_the_gate_itself_thinks_better_of_it(client: MlflowClient) -> None:
    registry.apply_decision(client, NAME, "1", YES)
    registry.apply_decision(client, NAME, "2", NO)
    client.delete_model_version_tag(NAME, "2", "promotion.refused")  # as an earlier release left it
    with pytest.raises(InputError, match=r"refused version 2.*worse"):
        registry.promote(client, NAME, "2")

    registry.apply_decision(client, NAME, "2", NO)
    registry.apply_decision(client, NAME, "2", YES)
    assert registry.rollback(client, NAME) == ("1", "2")
    assert registry.promote(client, NAME, "2") == "2"


def test_rollbacks_walk_back_and_end_also_where_a_version_was_champion_twice(client: MlflowClient) -> None:
    for version in ("1", "2", "1"):
        registry.promote(client, NAME, version)

    assert registry.rollback(client, NAME) == ("2", "1")
    assert registry.rollback(client, NAME) == ("1", "2")
    assert aliases(client) == {"challenger": "3", "champion": "1"}
    with pytest.raises(InputError, match="no champion before version 1"):
        registry.rollback(client, NAME)


def test_a_decision_against_another_champion_is_not_carried_over(client: MlflowClient) -> None:
    registry.apply_decision(client, NAME, "1", YES)
    client.set_model_version_tag(NAME, "3", "promotion.compared_with", "1")
    client.set_model_version_tag(NAME, "3", "promotion.status", "passed")
    registry.promote(client, NAME, "2", force=True)

    with pytest.raises(InputError, match=r"compared version 3 .* with champion 1, but the champion is 2"):
        registry.promote(client, NAME, "3")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("models:/nobody@champion", "'nobody' has no version with alias 'champion'; the registry has no models yet"),
        ("models:/nobody/1", "'nobody' has no version '1'"),
        ("models:/nobody", "is not of the form"),
        ("models:/nobody@", "is not of the form"),
        ("models:/a/b/c", "is not of the form"),
        ("models:/m-00000000000000000000000000000000", "cannot be downloaded"),
        ("nowhere", "is neither a folder nor of the form"),
    ],
)
def test_an_unknown_model_is_one_clear_sentence(tracking_uri: str, reference: str, expected: str) -> None:
    with pytest.raises((InputError, RegistryError)) as caught:
        load_model(reference, tracking_uri)

    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_mlflow_cannot_be_asked_for_is_bad_input(client: MlflowClient) -> None:
    with pytest.raises(InputError, match="has both kinds of quotes"):
        registry.versions(client, "a'b\"c")


def test_the_challenger_is_the_newest_version_whichever_training_names_it_last(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = client.create_model_version

    def overtaken(*args: Any, **options: Any) -> Any:
        """What another training registers and names comes between."""
        own, other = create(*args, **options), create(*args, **options)
        client.set_registered_model_alias(NAME, "challenger", other.version)
        return own

    given = client.get_model_version(NAME, "1")
    monkeypatch.setattr(client, "create_model_version", overtaken)

    assert registry.register(client, NAME, given.source, run_id="0" * 32) == "4"
    assert aliases(client) == {"challenger": "5"}


def test_every_registered_model_is_listed_however_many_there_are(tracking_uri: str, panel: Panel) -> None:
    client = connect(tracking_uri)
    with start_run(client, NAME, tracking_uri=tracking_uri) as run:
        uri = run.log_model(random_forecaster(), panel)
    names = [f"model-{number:03d}" for number in range(101)]  # a page of MLflow's has 100
    for name in names:
        client.create_registered_model(name)
    registry.register(client, names[-1], uri, run_id=run.run_id)

    assert [row.name for row in registry.versions(client)] == names[-1:]
    with pytest.raises(InputError, match=f"{names[-1]!r} has no version with alias 'champion'; it has aliases"):
        load_model(f"models:/{names[-1]}@champion", tracking_uri)


def test_what_another_process_makes_in_the_meantime_is_used(
    tracking_uri: str, panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(tracking_uri)
    client.create_experiment(NAME)
    client.create_registered_model(NAME)
    known, unseen = client.get_experiment_by_name, iter([None])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(unseen, known(name)))
    monkeypatch.setattr(client, "search_registered_models", lambda _: [])

    with start_run(client, NAME, tracking_uri=tracking_uri) as run:
        uri = run.log_model(random_forecaster(), panel)

    assert registry.register(client, NAME, uri, run_id=run.run_id) == "1"


def test_a_deleted_experiment_is_bad_input_that_says_how_it_comes_back(client: MlflowClient, tracking_uri: str) -> None:
    number = client.get_experiment_by_name(NAME).experiment_id
    client.delete_experiment(number)

    with (
        pytest.raises(InputError, match=rf"experiment '{NAME}' is deleted in MLflow.* restore -x {number}\)"),
        start_run(client, NAME, tracking_uri=tracking_uri),
    ):
        pass


def test_a_model_in_a_folder_is_loaded_from_it_and_damage_is_noticed(tmp_path: Path) -> None:
    model = random_forecaster()
    model.save(tmp_path / "model")

    assert load_model(tmp_path / "model").forecaster.fingerprint() == model.fingerprint()
    weights = tmp_path / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(ArtifactError):
        load_model(tmp_path / "model")


def test_a_server_that_is_away_for_a_while_ends_no_training(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it missed it gets later, in order, and at the end at the latest; and it is not asked at every epoch."""
    logged: list[int] = []
    tries: list[int] = []

    def log(_values: dict[str, float], step: int) -> None:
        tries.append(step)
        if away:
            raise MlflowException("max retries exceeded")
        logged.append(step)

    clock = [0.0]
    monkeypatch.setattr("mlflow.log_metrics", log)
    monkeypatch.setattr("pipelines.tracking.time.monotonic", lambda: clock[0])
    run = TrainingRun(client, "run")
    for epoch in range(8):
        away = 2 <= epoch < 6
        clock[0] += PAUSE / 2 + 1
        run.log_epoch({"epoch": epoch, "train_loss": 1.0})

    assert logged == list(range(8))
    assert tries == [0, 1, 2, 2, 2, 3, 4, 5, 6, 7]
    away = True
    run.log_epoch({"epoch": 8, "train_loss": 1.0})
    with pytest.raises(RegistryError, match="max retries"):
        run.log_rest()
