"""The registry watcher: follows a model reference, and hands over each new version that loads and works.

It knows a registry and a taker by what they do, and keeps the last good version on disk; not MLflow, not the engine.
Invariant: a look-up that fails or a version that does not work changes nothing but `trouble`; what was handed over last
keeps serving.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Protocol

from forecaster import Forecaster, ForecasterError
from service.errors import ModelError, ServiceError, first_line
from service.metrics import Metrics
from service.models.registry import Reference, Registry
from service.models.served import ServedModel, load_model

__all__ = ["Taker", "Watcher"]

_PARTIAL = ".partial-"
"""How folders begin that are still being written."""


class Taker(Protocol):
    """Puts models to work."""

    def take(self, model: ServedModel) -> None:
        """Serve a version that works; raises `ServiceError` to refuse it. Runs on the watcher's thread."""

    def recall(self, name: str, version: str) -> ServedModel | None:
        """A version that served before and is still at hand."""


class Watcher:
    """Polls a reference in a thread of its own.

    Parameters
    ----------
    reference
        What to follow.
    registry
        Where.
    taker
        Gets each new version that works.
    cache
        Folder that keeps the last good version, and the one before, for a start without registry; None: keep nothing.
    poll_seconds
        Pause between look-ups.
    metrics
        Told about failures.
    """

    def __init__(
        self,
        reference: Reference,
        registry: Registry,
        taker: Taker,
        *,
        cache: Path | None,
        poll_seconds: float,
        metrics: Metrics,
    ) -> None:
        self.trouble: str | None = "not looked up yet"
        self.looked = False  # once, to the end
        self._reference = reference
        self._registry = registry
        self._taker = taker
        self._cache = cache
        self._poll_seconds = poll_seconds
        self._metrics = metrics
        self._serving: str | None = None
        self._refused: str | None = None
        self._refusal = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="registry", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; a look-up in progress may still end by itself."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while not self._stop.is_set():
            self.look()
            self.looked = True
            self._stop.wait(self._poll_seconds)

    def look(self) -> None:
        """Look once, and take what is new."""
        version = None
        try:
            version = self._registry.version_of(self._reference)
        except ModelError as error:
            trouble = str(error)
        except Exception as error:
            # Whatever a registry's client raises, it must not take the service down.
            self._metrics.registry_errors.inc()
            self._metrics.registry_up.set(0)
            self._without_version(f"the registry cannot be asked: {_line(error)}")
            return
        self._metrics.registry_up.set(1)
        self._metrics.registry_seen.set_to_current_time()
        if version is None:
            self._without_version(trouble)
        elif version == self._serving:
            self.trouble = self._refused = None
        elif version == self._refused:
            self.trouble = self._refusal
            self._take_cached()
        else:
            self._take_version(version)

    def _without_version(self, trouble: str) -> None:
        if not (self.trouble or "").startswith(trouble):
            logging.getLogger("service").warning("model %s: %s", self._reference.name, trouble)
        self.trouble = trouble
        self._take_cached()

    def _take_version(self, version: str) -> None:
        name, step = self._reference.name, "fetched"
        try:
            at_hand = self._taker.recall(name, version)
            if at_hand is not None:
                step = "served yet"
                self._serve(at_hand, None)
                return
            with tempfile.TemporaryDirectory(prefix="forecaster-") as folder:
                artifact = self._registry.fetch(name, version, Path(folder))
                model = load_model(artifact, name, version)
                step = "served yet"
                self._serve(model, artifact)
        except ServiceError as error:
            # Bad in itself: looked at again only when the alias moves.
            self._metrics.refused_models.inc()
            self._refused, self._refusal = version, f"version {version} was not taken: {error}"
            self.trouble = self._refusal
            logging.getLogger("service").error("model %s %s", name, self.trouble)
        except Exception as error:
            trouble = f"version {version} cannot be {step}: {_line(error)}"
            if not (self.trouble or "").startswith(trouble):
                logging.getLogger("service").warning("model %s %s", name, trouble)
            self.trouble = trouble
            if step != "fetched":
                return  # it is the store of this service that fails
            self._metrics.registry_errors.inc()
        else:
            return
        self._take_cached()

    def _serve(self, model: ServedModel, artifact: Path | None) -> None:
        self._taker.take(model)
        before, self._serving, self._refused, self.trouble = self._serving, model.version, None, None
        self._keep(artifact, model, before)

    # -- the last good version on disk -----------------------------------------------------------------------------

    def _kept(self) -> Path | None:
        return self._cache and self._cache / self._reference.name

    def _keep(self, artifact: Path | None, model: ServedModel, before: str | None) -> None:
        kept, version = self._kept(), model.version
        if kept is None:
            return
        try:
            kept.mkdir(parents=True, exist_ok=True)
            target = kept / version
            if artifact is not None and target.exists() and not _holds(target, model.key):
                shutil.rmtree(target)
            if artifact is not None and not target.exists():
                partial = Path(tempfile.mkdtemp(dir=kept, prefix=_PARTIAL))
                shutil.copytree(artifact, partial, dirs_exist_ok=True)
                partial.rename(target)
            if not target.exists():
                return
            # What the note does not name is somebody else's, and stays: the folder may hold other things, too.
            ours = [one for one in sorted({*_kept_before(kept), version}) if (kept / one).is_dir()]
            note = kept / ".latest"
            note.write_text(json.dumps({"version": version, "kept": ours}))
            note.rename(kept / "latest.json")
            for old in [kept / one for one in ours if one not in (version, before)] + [*kept.glob(f"{_PARTIAL}*")]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            logging.getLogger("service").warning("model %s is not kept on disk: %s", self._reference.name, error)

    def _take_cached(self) -> None:
        """If nothing serves yet, the last good version does; of one that is named by its number, only that."""
        kept = self._kept()
        if kept is None or self._serving is not None:
            return
        try:
            version = json.loads((kept / "latest.json").read_text())["version"]
            if self._reference.version not in (None, version):
                raise ModelError(f"it keeps version {version}")
            self._taker.take(load_model(kept / version, self._reference.name, version))
            self._serving = version
            self.trouble = f"{self.trouble}; serving version {version} from the cache"
        except Exception as error:
            self.trouble = f"{self.trouble}; nothing usable in the cache: {_line(error)}"


def _kept_before(folder: Path) -> list[str]:
    """Versions that this folder's note says were put there."""
    try:
        note = json.loads((folder / "latest.json").read_text())
        found = [str(one) for one in (note["version"], *note.get("kept", ()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [one for one in found if one.isdecimal()]


def _holds(folder: Path, key: str) -> bool:
    """Whether an artifact is whole and has these weights.

    A machine may have died while it was written, and versions of a registry that was set up anew begin at 1 again.
    """
    try:
        return Forecaster.load(folder).fingerprint() == key
    except ForecasterError:
        return False


def _line(error: Exception) -> str:
    return first_line(error)[:300]
