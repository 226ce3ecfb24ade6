"""The models of one process: a service each, and what they share, API keys, traces, and the answer to "ready?".

It knows names, services and no HTTP. Invariants: a named model behaves like a service of its own; one that cannot be
opened is tried again and keeps no other from serving.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from service.errors import ServiceError, first_line
from service.keys import KeyRing, is_loopback
from service.metrics import Metrics, Requests
from service.naming import prefix_of
from service.problems import Problem, shortened, unavailable
from service.runtime import Readiness, Service
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracing

__all__ = ["Host", "Hosted"]

_KEYS_SECONDS = 2.0  # how often the file of API keys is looked at


@dataclass(slots=True)
class Hosted:
    """One model of a process.

    Attributes
    ----------
    name
        It is served under; None: the one at the root.
    settings
        Its own.
    metrics
        What is counted for it.
    service
        Serves it; None as long as it cannot be opened.
    trouble
        Why it cannot.
    """

    name: str | None
    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    service: Service | None = None
    trouble: str | None = None

    @property
    def prefix(self) -> str:
        """What comes before its paths."""
        return prefix_of(self.name)

    def required(self) -> Service:
        """Its service.

        Raises
        ------
        Problem
            503 if it cannot be opened.
        """
        if self.service is None:
            raise unavailable(f"this model cannot be opened: {self.trouble}")
        return self.service

    async def readiness(self) -> Readiness:
        """Check model, engine and store."""
        if self.service is not None:
            return await self.service.readiness()
        self.metrics.ready.set(0)
        failing = {"model": f"cannot be opened: {self.trouble}"}
        return Readiness(dict(failing), failing)

    def describe(self) -> dict[str, Any]:
        """Which model it is, on which calendar, and whether it serves."""
        service = self.service
        engine = None if service is None else service.engine
        if engine is not None:
            state = "serving" if engine.alive else "stopped"
        else:
            state = "starting" if service is not None and not service.settled else "unavailable"
        config = None if engine is None else engine.model.forecaster.config
        return {
            "name": self.name,
            "prefix": self.prefix,
            "reference": self.settings.model,
            "state": state,
            "model": None if engine is None else engine.model.label,
            "freq": config and config.freq,
            "time_zone": config and config.time_zone,
            "trouble": self.trouble if service is None else service.watcher_trouble(),
        }


class Host:
    """The services of one process.

    Parameters
    ----------
    settings
        What the operator chose.
    keys
        Who may call; None: everybody who can reach it.
    tracing
        Makes spans; None: nobody asked for traces.
    """

    def __init__(self, settings: Settings, keys: KeyRing | None = None, tracing: Tracing | None = None) -> None:
        self.settings = settings
        self.keys = keys
        self.tracing = tracing
        self.hosted = {name: Hosted(name, settings.of(name)) for name in settings.names}
        unnamed = self.hosted.get(None)
        self.requests: Requests = Requests() if unnamed is None else unnamed.metrics
        self.leaving = False
        self.ended = True
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Read the API keys, and open the store of every model and, where the model is a folder, load it.

        Raises
        ------
        ServiceError
            None of the models can be opened, the keys cannot be read, or others than this machine would be listened to
            without keys.
        """
        keys = None
        if settings.api_keys_file is not None:
            keys = KeyRing.open(settings.api_keys_file, settings.rate_limit)
        elif not is_loopback(settings.host):
            raise ServiceError(
                f"host {settings.host} listens to other machines, which needs API keys: make one with `forecaster keys "
                "new` and name the file in FORECASTER_API_KEYS_FILE, or use host 127.0.0.1"
            )
        tracing = None
        if settings.open_telemetry:
            from service.tracing import Tracing

            tracing = Tracing.open()
        host = cls(settings, keys, tracing)
        host.open_models()
        return host

    def open_models(self) -> None:
        """Open what can be opened.

        Raises
        ------
        ServiceError
            None of the models can.
        """
        every = list(self.hosted.values())
        if len(every) == 1:
            every[0].service = self._opened(every[0])
            return
        for hosted in every:
            try:
                hosted.service = self._opened(hosted)
            except Exception as error:
                # Whatever it is that breaks one model, it must not take the others.
                self._failed(hosted, error)
        if not any(hosted.service for hosted in every):
            raise ServiceError("; ".join(f"{_called(hosted)}: {hosted.trouble}" for hosted in every))

    def _opened(self, hosted: Hosted) -> Service:
        return Service.open(hosted.settings, hosted.metrics, self.tracing)

    @staticmethod
    def _failed(hosted: Hosted, error: Exception) -> None:
        trouble = first_line(error)
        if trouble != hosted.trouble:
            unexpected = None if isinstance(error, ServiceError) else error
            logging.getLogger("service").error("%s cannot be opened: %s", _called(hosted), trouble, exc_info=unexpected)
        hosted.trouble = trouble

    async def start(self) -> None:
        """Start what could be opened, and go on trying to open the rest; call it on the event loop."""
        loop = asyncio.get_running_loop()
        if self.keys is not None:
            self._tasks.append(loop.create_task(self._watch_keys(self.keys)))
        for hosted in self.hosted.values():
            if hosted.service is None or not await self._started(hosted, hosted.service):
                self._tasks.append(loop.create_task(self._try_again(hosted)))

    async def stop(self) -> None:
        """Finish what was taken in by each, write snapshots, close the stores."""
        self._stopping.set()
        if self._tasks:
            # One of them may be opening a database that does not answer.
            await asyncio.wait(self._tasks, timeout=self.settings.drain_seconds)
        services = [hosted.service for hosted in self.hosted.values() if hosted.service is not None]
        await asyncio.gather(*(service.stop() for service in services))
        self.ended = all(service.ended for service in services)
        if self.tracing is not None:
            self.tracing.close()

    def leave(self) -> None:
        """Say from now on that it is not ready, and let readers of events go elsewhere."""
        self.leaving = True
        for hosted in self.hosted.values():
            if hosted.service is not None:
                hosted.service.leave()

    async def _started(self, hosted: Hosted, service: Service) -> bool:
        """Start a service. One of several that cannot start is as one that cannot be opened; whether it did."""
        try:
            await service.start()
        except Exception as error:
            if len(self.hosted) == 1:
                raise
            hosted.service = None
            self._failed(hosted, error)
            await service.stop()
            return False
        hosted.service, hosted.trouble = service, None
        return True

    async def _try_again(self, hosted: Hosted) -> None:
        """A model that could not be opened serves as soon as it can."""
        while not await self._paused(hosted.settings.poll_seconds):
            try:
                service = await asyncio.to_thread(self._opened, hosted)
            except Exception as error:
                self._failed(hosted, error)
            else:
                if await self._started(hosted, service):
                    return

    async def _watch_keys(self, keys: KeyRing) -> None:
        """Keys come and go without a restart."""
        trouble = ""
        while not await self._paused(_KEYS_SECONDS):
            try:
                if keys.refresh():
                    for hosted in self.hosted.values():
                        if hosted.service is not None:
                            hosted.service.subscriptions.renew()
                trouble = ""
            except ServiceError as error:
                if str(error) != trouble:
                    logging.getLogger("service").error("API keys stay as they are: %s", error)
                trouble = str(error)

    async def _paused(self, seconds: float) -> bool:
        """Wait so long, or until it stops; whether it stops."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        return self._stopping.is_set()

    # -- questions -------------------------------------------------------------------------------------------------

    def unknown(self, name: str | None) -> Problem:
        """404: no such model."""
        names = ", ".join(str(known) for known in self.hosted if known is not None)
        if name is None:
            detail = f"only named models are served here, below /models/NAME: {names}"
        else:
            detail = f"there is no model named {shortened(name, 80)!r}; there are: {names or 'none'}"
        return Problem(404, "unknown-model", detail)

    def healthy(self) -> str | None:
        """What only a new process would heal; None if nothing is wrong."""
        for hosted in self.hosted.values():
            trouble = None if hosted.service is None else hosted.service.healthy()
            if trouble is not None:
                return trouble if hosted.name is None else f"model {hosted.name!r}: {trouble}"
        return None

    async def readiness(self) -> tuple[bool, dict[str | None, Readiness]]:
        """Whether to send requests here, and what was checked of each model.

        Not while it is leaving, nor before it has been seen of every model what is there; then as long as one serves:
        what takes one model away, a registry or a broken version, must not take the others.
        """
        checks = await asyncio.gather(*(hosted.readiness() for hosted in self.hosted.values()))
        found = dict(zip(self.hosted, checks, strict=True))
        settled = all(check.settled for check in checks)
        return not self.leaving and settled and any(check.ready for check in checks), found


def _called(hosted: Hosted) -> str:
    return "the model at the root" if hosted.name is None else f"model {hosted.name!r}"
