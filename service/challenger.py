"""The challenger in shadow: a process that follows the log under another model, and its figures beside the champion's.

It starts that process, anew some time after it has died, ends it and reads its lines. Invariant: whatever becomes of it
(it crashes, hangs, says nothing of use), the champion neither waits for it nor notices.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from forecaster.quality import QUANTITIES
from service.engine import Engine
from service.engine.survey import Survey
from service.errors import first_line
from service.metrics import Metrics
from service.models.served import ServedModel

__all__ = ["Challenger"]


class Challenger:
    """What a watcher hands challengers to.

    Parameters
    ----------
    store
        URL of the observation log.
    engine
        The champion's, if there is one yet.
    metrics
        Told both models' figures.
    admit
        Told of each challenger before it follows.
    streams
        How many streams are followed.
    seconds
        Pause of the process between two looks.
    silence
        Seconds without a word after which the process is ended.
    pause
        Seconds until one that has ended is started again.
    """

    def __init__(
        self,
        store: str,
        engine: Callable[[], Engine | None],
        metrics: Metrics,
        *,
        admit: Callable[[ServedModel], None],
        streams: int,
        seconds: float,
        silence: float = 600,
        pause: float = 60,
    ) -> None:
        self.trouble: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._store = store
        self._engine = engine
        self._metrics = metrics
        self._admit = admit
        self._options = ["--streams", str(streams), "--seconds", str(seconds)]
        self._silence = silence
        self._pause = pause
        self._starting = threading.Lock()
        self._over = threading.Event()
        self._pair: tuple[Survey, Survey] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._reader: threading.Thread | None = None
        self._model: ServedModel | None = None

    def take(self, model: ServedModel) -> None:
        """Let another challenger follow."""
        self.close()
        self._admit(model)
        self._folder = tempfile.TemporaryDirectory(prefix="forecaster-challenger-")
        folder = Path(self._folder.name) / "model"
        model.forecaster.save(folder)
        self._model, self.trouble, self._over = model, None, threading.Event()
        command = [sys.executable, "-m", "service.shadow", "--model", str(folder), *self._options]
        self._begin(command)
        arguments = (model, command, self._over)
        self._reader = threading.Thread(target=self._follow, args=arguments, name="challenger", daemon=True)
        self._reader.start()

    def _begin(self, command: list[str]) -> None:
        # The URL may hold a password, and arguments are for all to see.
        environment = {**os.environ, "FORECASTER_STORE": self._store}
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)

    def recall(self, _name: str, _version: str) -> ServedModel | None:
        """None is kept."""
        return None

    def close(self) -> None:
        """End the process."""
        with self._starting:
            self._over.set()
            process, self.process, self._pair, self._model = self.process, None, None, None
        if process is not None:
            process.kill()
            process.wait()
        if self._reader is not None:
            self._reader.join(5)
        if self._folder is not None:
            self._folder.cleanup()

    def describe(self) -> dict[str, Any]:
        """The challenger, if there is one, what is wrong with it, and both models' figures over the same streams."""
        model, pair = self._model, self._pair
        found: dict[str, Any] = {**(model.label if model else {}), "trouble": self.trouble, "streams": 0}
        if pair is not None:
            found["streams"] = len(pair[0].unique_ids)
            for who, survey in zip(("challenger", "champion"), pair, strict=True):
                total, recent = survey.pooled()
                found[who] = {**survey.model.label, "total": asdict(total), "recent": asdict(recent)}
        return found

    def _follow(self, model: ServedModel, command: list[str], over: threading.Event) -> None:
        while (process := self.process) is not None and not over.is_set():
            self._read(model, process)
            begun = False
            while not begun and not over.wait(self._pause):
                with self._starting:
                    begun = over.is_set() or self._begun_again(command)

    def _begun_again(self, command: list[str]) -> bool:
        try:
            self._begin(command)
        except OSError as error:  # no memory for another process, say
            self.trouble = f"the challenger cannot be started: {first_line(error)}"
            return False
        return True

    def _read(self, model: ServedModel, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            while True:
                if not select.select([lines], [], [], self._silence)[0]:
                    process.kill()
                    self._fail(process, f"was silent for {self._silence:g} s and was ended")
                    return
                line = lines.readline()
                if not line.endswith(b"\n"):
                    self._fail(process, f"ended with status {process.wait()}")
                    return
                try:
                    self._compare(model, orjson.loads(line))
                    if process is self.process:
                        self.trouble = None
                except Exception:
                    # Figures are not worth an error.
                    logging.getLogger("service").exception("figures of the challenger are not usable")

    def _fail(self, process: subprocess.Popen[bytes], what: str) -> None:
        if process is self.process:  # else it was told to end
            self._metrics.challenger_failures.inc()
            self.trouble = f"the challenger {what}"
            logging.getLogger("service").error(self.trouble)

    def _compare(self, model: ServedModel, said: dict[str, Any]) -> None:
        """Both models' sums over the streams that both know."""
        engine = self._engine()
        if engine is None:
            return
        champion = engine.survey(said["unique_ids"]).result(self._silence)
        place = {name: i for i, name in enumerate(said["unique_ids"])}
        rows = [place[name] for name in champion.unique_ids]
        total, recent = (
            np.array(said[key]).reshape(len(QUANTITIES), len(place))[:, rows] for key in ("total", "recent")
        )
        steps = [said["last_steps"][row] for row in rows]
        pair = Survey(model, champion.unique_ids, steps, total, recent), champion
        if model is self._model:  # else it was told to end meanwhile
            self._pair = pair
            self._metrics.compared([survey.pooled()[1] for survey in pair])
