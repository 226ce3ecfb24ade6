"""The model registry: versions, the aliases that name them, and what was decided about each.

`challenger` names the newest candidate, `champion` the version that serves, `previous` the one a rollback returns to.
The invariant: a version that became champion carries, as a tag, which champion it replaced, until it is rolled back. So
rollbacks walk back step by step and end; of a version that became champion twice, only the last time counts. Knows
MLflow's registry and nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from forecaster import InputError
from pipelines.connection import mlflow_errors, shorten, unless_there
from pipelines.promotion import Decision

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS",
    "apply_decision",
    "describe_version",
    "known_instead",
    "promote",
    "register",
    "rival_of",
    "rollback",
    "run_of_version",
    "version_of_alias",
    "versions",
]

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"

STATUS = "promotion.status"
REASON = "promotion.reason"
COMPARED_WITH = "promotion.compared_with"
REFUSED = "promotion.refused"
"""Why the gate refused it, whatever was done with it since."""

REPLACED = "promotion.previous_champion"
NOBODY = "none"


def register(
    client: MlflowClient, name: str, model_uri: str, *, run_id: str, tags: Mapping[str, str] | None = None
) -> str:
    """Register a logged model as the next version of `name`, with alias `challenger`.

    Parameters
    ----------
    client
        An open connection.
    name
        Registered model; created if there is none.
    model_uri
        ``models:/<model id>`` as returned by logging.
    run_id
        The run that trained it.
    tags
        Written on the version.

    Returns
    -------
    str
        The new version.
    """
    with mlflow_errors(f"model {name!r} cannot be registered"):
        for known in client.search_model_versions(_named(name)):
            if known.run_id == run_id:  # a repeated step must not make a second version of one model
                _point_challenger(client, name)
                return str(known.version)
        if not client.search_registered_models(_named(name)):
            with unless_there():
                client.create_registered_model(name)
        created = client.create_model_version(
            name, source=model_uri, run_id=run_id, tags=dict(tags or {}), model_id=model_uri.removeprefix("models:/")
        )
        _point_challenger(client, name)
    return str(created.version)


def _point_challenger(client: MlflowClient, name: str) -> None:
    """At the newest: another training may have registered one since."""
    newest = max(int(known.version) for known in client.search_model_versions(_named(name)))
    client.set_registered_model_alias(name, CHALLENGER, str(newest))


def apply_decision(client: MlflowClient, name: str, version: str, decision: Decision) -> None:
    """Carry out the gate's decision: move `champion`, or leave it; write on the version what was decided and why."""
    champion = rival_of(client, name, version)
    with mlflow_errors(f"version {version} of model {name!r} cannot be tagged"):
        client.set_model_version_tag(name, version, COMPARED_WITH, champion or NOBODY)
        client.set_model_version_tag(name, version, REASON, decision.reason)
        if not decision.promoted:
            client.set_model_version_tag(name, version, STATUS, "refused")
            client.set_model_version_tag(name, version, REFUSED, decision.reason)
        elif REFUSED in client.get_model_version(name, version).tags:  # by an earlier look of the gate
            client.delete_model_version_tag(name, version, REFUSED)
    if decision.promoted:
        _make_champion(client, name, version, replaced=champion)


def describe_version(client: MlflowClient, name: str, version: str, text: str) -> None:
    """Give a version its description, Markdown for people."""
    with mlflow_errors(f"version {version} of model {name!r} cannot be described"):
        client.update_model_version(name, version, text)


def promote(client: MlflowClient, name: str, version: str | None = None, *, force: bool = False) -> str:
    """Make a version the champion by hand.

    Parameters
    ----------
    client
        An open connection.
    name
        Registered model.
    version
        Which one; by default the challenger.
    force
        Go against the gate's recorded decision.

    Returns
    -------
    str
        The version that is champion now.

    Raises
    ------
    InputError
        There is no such version, it is champion already, or the gate refused it (or judged it against another champion)
        and `force` is off.
    """
    wanted = version or version_of_alias(client, name, CHALLENGER)
    if wanted is None:
        raise InputError(f"model {name!r} has no challenger{known_instead(client, name)}")
    with mlflow_errors(
        f"model {name!r} cannot be read", f"model {name!r} has no version {wanted!r}{known_instead(client, name)}"
    ):
        found = client.get_model_version(name, wanted)
    wanted, tags = str(found.version), found.tags  # 01 names version 1, too
    champion = version_of_alias(client, name, CHAMPION)
    if champion == wanted:
        raise InputError(f"version {wanted} of model {name!r} is the champion already")
    if not force:
        if refusal := tags.get(REFUSED, tags.get(REASON) if tags.get(STATUS) == "refused" else None):
            raise InputError(f"the gate refused version {wanted} of model {name!r}: {refusal}; --force overrules it")
        compared_with = tags.get(COMPARED_WITH)
        if compared_with not in (champion or NOBODY, None) and tags.get(STATUS) != "rolled back":
            raise InputError(
                f"the gate compared version {wanted} of model {name!r} with champion {compared_with}, but the champion "
                f"is {champion}; train again, or overrule with --force"
            )
    reason = "promoted by hand" + (" against the gate" if force and tags.get(REFUSED) else "")
    with mlflow_errors(f"version {wanted} of model {name!r} cannot be tagged"):
        client.set_model_version_tag(name, wanted, REASON, reason)
    _make_champion(client, name, wanted, replaced=champion)
    return wanted


def rollback(client: MlflowClient, name: str) -> tuple[str, str]:
    """Return to the champion before the present one.

    Returns
    -------
    tuple of str
        The version that is champion now, and the one that was.

    Raises
    ------
    InputError
        There is no champion, or it replaced none.
    """
    champion = version_of_alias(client, name, CHAMPION)
    if champion is None:
        raise InputError(f"model {name!r} has no champion to roll back from{known_instead(client, name)}")
    with mlflow_errors(f"model {name!r} cannot be read"):
        before = client.get_model_version(name, champion).tags.get(REPLACED)
    if not before:
        raise InputError(f"model {name!r} has no champion before version {champion}")
    missing = f"model {name!r} has no version {before} any more, so there is nothing to roll back to"
    with mlflow_errors(f"model {name!r} cannot be rolled back", missing):
        earlier = client.get_model_version(name, before).tags.get(REPLACED)
        client.set_registered_model_alias(name, CHAMPION, before)
        client.set_model_version_tag(name, champion, STATUS, "rolled back")
        client.set_model_version_tag(name, before, STATUS, "promoted")
        client.delete_model_version_tag(name, champion, REPLACED)  # taken back: the way there is not walked again
        _point_previous(client, name, earlier)
    return before, champion


def version_of_alias(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version an alias names, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        with mlflow_errors(f"alias {alias!r} of model {name!r} cannot be read"):
            raise


def rival_of(client: MlflowClient, name: str, version: str) -> str | None:
    """Whom a version has to beat: the champion, or the one that it replaced where it is that already; None for nobody.

    A step that promoted it and was cut short after that is repeated, and must not hold it against itself.
    """
    champion = version_of_alias(client, name, CHAMPION)
    if champion != version:
        return champion
    with mlflow_errors(f"model {name!r} cannot be read"):
        return client.get_model_version(name, version).tags.get(REPLACED)


def run_of_version(client: MlflowClient, name: str, version: str) -> str:
    """The run that trained a version.

    Raises
    ------
    InputError
        There is no such version, or it came without a run.
    """
    with mlflow_errors(f"model {name!r} cannot be read", f"model {name!r} has no version {version!r}"):
        run_id = client.get_model_version(name, version).run_id
    if not run_id:
        raise InputError(f"version {version} of model {name!r} came without a run")
    return str(run_id)


def known_instead(client: MlflowClient, name: str) -> str:
    """End a "no such" sentence: what there is instead."""
    with mlflow_errors("the registry cannot be read"):
        found = client.search_registered_models(_named(name)) if name else []
        names = [model.name for model in client.search_registered_models(max_results=8)]
    if not found:
        return f"; the registry has {', '.join(names)}" if names else "; the registry has no models yet"
    aliases = found[0].aliases
    return (
        f"; it has aliases {', '.join(f'{alias} (version {version})' for alias, version in sorted(aliases.items()))}"
        if aliases
        else ""
    )


def versions(client: MlflowClient, name: str | None = None) -> list[ModelVersion]:
    """All versions of one model or of all models, by name, newest first, aliases included."""
    with mlflow_errors("the registry cannot be read"):
        page = client.search_registered_models(_named(name) if name else None)
        models = list(page)
        while page.token:
            page = client.search_registered_models(page_token=page.token)
            models += page
        found = []
        for model in sorted(models, key=lambda model: model.name):
            aliases = {
                str(version): [a for a, v in model.aliases.items() if str(v) == str(version)]
                for version in model.aliases.values()
            }
            rows = sorted(client.search_model_versions(_named(model.name)), key=lambda row: -int(row.version))
            for row in rows:
                row.aliases = aliases.get(str(row.version), [])  # a search leaves them out
            found += rows
    return found


def _named(name: str) -> str:
    """MLflow's filter for one model, which cannot ask for a name with both kinds of quotes."""
    if "'" in name and '"' in name:
        raise InputError(f"model name {shorten(name, 80)} has both kinds of quotes; no model has such a name")
    return f'name = "{name}"' if "'" in name else f"name = '{name}'"


def _make_champion(client: MlflowClient, name: str, version: str, *, replaced: str | None) -> None:
    with mlflow_errors(f"version {version} of model {name!r} cannot be promoted"):
        # Tags first: if this is cut short, nothing serves a version that does not say where to go back to.
        if replaced is not None and replaced != version:
            client.set_model_version_tag(name, version, REPLACED, replaced)
        client.set_model_version_tag(name, version, STATUS, "promoted")
        client.set_registered_model_alias(name, CHAMPION, version)
        _point_previous(client, name, replaced)


def _point_previous(client: MlflowClient, name: str, version: str | None) -> None:
    if version is not None:
        client.set_registered_model_alias(name, PREVIOUS, version)
    elif version_of_alias(client, name, PREVIOUS) is not None:
        client.delete_registered_model_alias(name, PREVIOUS)
