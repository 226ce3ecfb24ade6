"""The data module: a panel as chunks for the Trainer.

Splits off the validation end of every series, and hands whole chunks (already batches), prepared for a network, to the
Trainer. Its loaders have no workers, which would repeat the lanes: for a GPU, processes of our own share them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from forecaster.chunks import Chunk, Lanes, validation_chunks
from forecaster.config import Config
from forecaster.holdout import Block, scatter_blocks, without_blocks
from forecaster.network import ForecastNetwork
from forecaster.panel import Panel
from forecaster.training.apart import MadeApart, may_fork
from forecaster.training.imagining import imagine
from forecaster.training.preparing import Preparation, Prepared, ahead

__all__ = ["ChunkDataModule", "held_out_steps", "judged", "sample"]

Float = npt.NDArray[np.float64]

WARM_UP_CHUNKS = 4
"""Chunks folded before a series' first validation origin."""

LANES = 128
"""Series followed side by side where nothing else is said."""

FEWEST_JUDGED = 64
"""Observed values of the validation part that decide between two trainings at least: among fewer, chance does."""

LARGEST_VALIDATION = 512
"""Series validated at most: a sample of a larger panel tells as much, sooner."""

ENOUGH_JUDGED = 512
"""Values of the validation part, about, that tell weights apart; it may grow to that and to the longest season, ..."""

LARGEST_JUDGED = 1 / 16
"""... but to no more than this share of a series."""

UPDATES = 1200
"""Updates of a run where the configuration names none; twice as many for a panel that is not small."""

SMALL_PANEL = 2**19
"""Observed values up to which chance rules what a training finds: longer runs learn them by heart, and several networks
average out what one cannot know."""

MOST_PASSES, IN_COMPANY = 40, 100
"""Passes over a panel at most: what a small one can teach, it has taught by then, and annealed weights are better than
those of a longer run before it turns. In company, whose series are others in every pass: more."""

EPOCH_PASSES = 5
SHORTEST_EPOCH = 10
"""Small panels are validated after so many passes, but not before so many updates: they are learnt by heart soon."""

IMAGINED = 512
"""Series drawn to be played beside a small panel: a pass plays a few of them, so that none is seen often."""

MOST_PROCESSES, MOST_THREADS = 16, 4
"""What prepares chunks for a GPU at most, which learns from one much sooner than a core prepares one; threads where no
process can be begun."""

LANES_OF_A_PROCESS = 16
"""Lanes that are worth one, at least."""

LARGEST_RUN = 20
"""A panel whose one pass takes more updates than that gets up to this many times as many."""


class _Stream(IterableDataset[Prepared]):
    """So many chunks: it goes on where the last epoch stopped, so that the carry stays true."""

    def __init__(self, chunks: Iterator[Prepared], length: int) -> None:
        self.chunks, self.length = chunks, length

    def __iter__(self) -> Iterator[Prepared]:
        return islice(self.chunks, self.length)

    def __len__(self) -> int:
        return self.length


class _Validation(IterableDataset[Prepared]):
    """Pairs of chunks, from the first, every time: warm up, score."""

    def __init__(self, network: ForecastNetwork, chunks: Sequence[Chunk]) -> None:
        self.network, self.chunks = network, chunks

    def __iter__(self) -> Iterator[Prepared]:
        preparation = Preparation(self.network)
        return ahead(preparation.drafts(self.chunks), preparation.finish)

    def __len__(self) -> int:
        return len(self.chunks)


class ChunkDataModule(LightningDataModule):
    """Training and validation chunks of one panel; `prepared_for` a network before they are asked for.

    Parameters
    ----------
    panel
        Training and validation part together.
    config
        Sizes.
    held_out
        Steps at the end of every series for validation; None: as many as the configuration says, if there is room.
    blocks
        Parts of the panel that must not be learnt from; None: drawn here, for the calibration.

    Attributes
    ----------
    blocks
        The parts of the panel that are not learnt from, beside the validation part.
    sources
        What is learnt from, apart: the panel's own series, and those imagined beside them, if any are.
    """

    def __init__(
        self, panel: Panel, config: Config, held_out: int | None = None, blocks: Sequence[Block] | None = None
    ) -> None:
        super().__init__()
        settings = config.training
        self.config = config
        self.held_out = held_out_steps(panel, config) if held_out is None else held_out
        learnt = panel.drop_last(self.held_out) if self.held_out else panel
        generator = np.random.default_rng(settings.seed)
        self.blocks = _blocks(learnt, config, generator) if blocks is None else list(blocks)
        beside = imagine(learnt, config, IMAGINED if settings.imagined == "on" else 0, generator)
        together = learnt.beside(beside)

        def lanes(panel: Panel, targets: Sequence[Float], generator: np.random.Generator, beside: int = 0) -> Lanes:
            return Lanes(
                panel,
                lanes=settings.lanes or LANES,
                chunk_length=min(settings.chunk_length, int(together.lengths.max())),  # no longer than what fills it
                horizon=config.horizon,
                prefix_length=2 * config.ring_length,
                generator=generator,
                carry=settings.carry,
                targets=targets,
                beside=beside,
                gaps=settings.gaps,
            )

        own = without_blocks(learnt, self.blocks)
        self.lanes = lanes(together, own + beside.values, generator, len(beside))
        self.sources = [
            lanes(panel, targets, np.random.default_rng(settings.seed))
            for panel, targets in ((learnt, own), (beside, beside.values))
            if len(panel)
        ]
        a_pass = self.lanes.chunks_per_pass
        usual = UPDATES if panel.observed <= SMALL_PANEL else 2 * UPDATES
        passes = IN_COMPANY if len(beside) else MOST_PASSES
        updates = settings.updates or max(min(usual, passes * a_pass), min(a_pass, LARGEST_RUN * UPDATES))
        epoch = min(settings.epoch_updates, max(SHORTEST_EPOCH, EPOCH_PASSES * a_pass))
        self.epochs = -(-updates // epoch)
        self.epoch_updates = -(-updates // self.epochs)
        self.updates = self.epochs * self.epoch_updates
        # Patience is told in epochs of the usual length.
        self.patience = -(-settings.patience * settings.epoch_updates // self.epoch_updates)
        self.validation = (
            list(
                validation_chunks(
                    sample(panel, LARGEST_VALIDATION, settings.seed),
                    held_out=self.held_out,
                    warm_up=WARM_UP_CHUNKS * settings.chunk_length,
                    horizon=config.horizon,
                    prefix_length=2 * config.ring_length,
                    lanes=LANES,  # whatever training has: losses are compared
                )
            )
            if self.held_out
            else []
        )

    def prepared_for(self, network: ForecastNetwork, on_gpu: bool = False) -> Self:
        """The same, ready to be learnt from by this network; without `validation` where nothing in it can be judged."""
        preparation = Preparation(network, self.lanes.generator, fixed=on_gpu)
        cores = torch.get_num_threads()
        if on_gpu and may_fork():

            def made(lanes: range) -> Iterator[Prepared]:
                return map(preparation.finish, preparation.drafts(self.lanes.chunks(lanes), self.lanes.lanes))

            processes = max(1, min(MOST_PROCESSES, cores - 1, self.lanes.lanes // LANES_OF_A_PROCESS))
            self._made: MadeApart | Generator[Prepared] = MadeApart(
                made, self.epoch_updates, self._first(preparation), processes
            )
            self._training: Iterable[Prepared] = self._made
        else:
            threads = min(MOST_THREADS, cores) if on_gpu else 1
            self._made = ahead(preparation.drafts(self.lanes), preparation.finish, threads)
            self._training = DataLoader(_Stream(self._made, self.epoch_updates), batch_size=None)
        self._validation = _Validation(network, self.validation)
        if not any(len(chunk.kept) for chunk in self._validation):
            self.validation = []
        return self

    def _first(self, preparation: Preparation) -> Prepared:
        """The first chunk, as if nobody had looked."""
        state = self.lanes.generator.bit_generator.state
        first = preparation.finish(next(preparation.drafts(self.lanes)))
        self.lanes.generator.bit_generator.state = state
        return first

    def close(self) -> None:
        """End what makes chunks for training.

        Left to the garbage collector, threads would be waited for by whichever thread it runs in, with the locks that
        this one holds: in one that is just starting, for ever.
        """
        self._made.close()

    def train_dataloader(self) -> Iterable[Prepared]:
        """One epoch of chunks, continuing the last."""
        return self._training

    def val_dataloader(self) -> DataLoader[Prepared] | list[DataLoader[Prepared]]:
        """Pairs of chunks: warm up, score."""
        return DataLoader(self._validation, batch_size=None) if self.validation else []


def _blocks(learnt: Panel, config: Config, generator: np.random.Generator) -> list[Block]:
    if config.calibration == "off":
        return []
    horizon, usual = config.horizon, int(np.median(learnt.lengths))
    # After a season and a horizon; of series too short for that, their last horizon, with one before it.
    earliest = min(horizon + config.seasonality[0], max(horizon, usual - horizon))
    return scatter_blocks(learnt, length=horizon, earliest=earliest, generator=generator)


def held_out_steps(panel: Panel, config: Config) -> int:
    """Steps held out of every series for validation; 0 where most series are too short to spare them.

    As many horizons as the configuration says; more where few series make that a sample of chance, or where it is a
    part of the longest season: one day happens to all series, and weights that suit it need not suit a week.
    """
    least, horizon, usual = config.training.validation_horizons, config.horizon, float(np.median(panel.lengths))
    if not least:
        return 0
    wanted = max(math.ceil(ENOUGH_JUDGED / (len(panel) * horizon)), math.ceil(max(config.seasonality) / horizon))
    steps = horizon * max(least, min(wanted, int(LARGEST_JUDGED * usual / horizon)))
    return steps if usual >= 2 * steps + config.seasonality[0] else 0


def judged(panel: Panel, held_out: int) -> int:
    """Observed values of the validation part."""
    return panel.observed - panel.drop_last(held_out).observed if held_out else 0


def sample(panel: Panel, most: int, seed: int) -> Panel:
    """At most `most` series, drawn without replacement."""
    if len(panel) <= most:
        return panel
    rows = np.sort(np.random.default_rng(seed).permutation(len(panel))[:most])
    return panel.select(rows)
