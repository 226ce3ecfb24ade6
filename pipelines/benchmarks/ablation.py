"""Ablation: what each part of the method is worth, as variants of the default configuration on the same sets.

A variant is a name and some overrides. All get the same time box and the same seeds; the table has their change of WQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from forecaster import InputError
from pipelines.benchmarks.accuracy import AccuracyRequest, run_accuracy
from pipelines.console import Reporter

__all__ = ["VARIANTS", "Variant", "choose_variants", "run_ablation"]

EXPERIMENT = "bench-ablation"


@dataclass(frozen=True, slots=True)
class Variant:
    """Changes to the default configuration, and what they stand for."""

    name: str
    overrides: Mapping[str, Any]


def variant(name: str, **overrides: Any) -> Variant:
    """A variant; ``section__key`` stands for the dotted key."""
    return Variant(name, {key.replace("__", "."): value for key, value in overrides.items()})


VARIANTS: dict[str, Variant] = {
    found.name: found
    for found in (
        variant("default"),
        # How it is trained: windows with one origin each, all origins of a window, all origins with carried state.
        variant("windowed", training__carry=False, training__origins="last", training__chunk_length=168),
        variant("forked", training__carry=False, training__chunk_length=168),
        variant("forked-short", training__carry=False),
        variant("carried-long", training__chunk_length=168),
        variant("chunk-16", training__chunk_length=16),
        variant("chunk-32", training__chunk_length=32),
        variant("chunk-112", training__chunk_length=112),
        variant("no-averaging", training__averaging=0.0),
        variant("no-finish", training__finish=0.0),
        variant("all-kept", training__pull="off"),
        # What it starts from and sees.
        variant("mean-start", training__start="mean"),
        variant("raw", network__anchored=False),
        variant("linear", transform="linear"),
        variant("log", transform="log"),
        variant("no-season", seasonality=(1,)),
        # The cell and its size.
        variant("gru", network__cell="gru"),
        variant("rnn", network__cell="rnn"),
        variant("hidden-32", network__hidden_size=32),
        variant("hidden-128", network__hidden_size=128),
        variant("layers-1", network__num_layers=1),
        variant("layers-3", network__num_layers=3),
        variant("members-1", network__members=1),
        variant("members-4", network__members=4),
        variant("no-dropout", network__dropout=0.0),
        variant("no-residual", network__residual=False),
        variant("layer-norm", network__layer_norm=True),
    )
}
"""All variants by name, in the order of the table."""


def choose_variants(names: Iterable[str]) -> list[Variant]:
    """Variants of these names, the default always first; all of them if there are none.

    Raises
    ------
    InputError
        A name is unknown.
    """
    wanted = list(names) or list(VARIANTS)
    for name in wanted:
        if name not in VARIANTS:
            raise InputError(f"variant {name!r} is unknown, expected some of {', '.join(VARIANTS)}")
    return [VARIANTS[name] for name in dict.fromkeys(["default", *wanted])]


def run_ablation(
    request: AccuracyRequest, variants: Sequence[Variant], reporter: Reporter | None = None
) -> Iterator[dict[str, Any]]:
    """Measure every variant on every set.

    Parameters
    ----------
    request
        Sets, seeds, time box; its own overrides apply to all variants.
    variants
        The default first.
    reporter
        Told how it goes.

    Yields
    ------
    dict
        Rows of `run_accuracy`, with the variant as `label`.
    """
    requests = [
        replace(
            request,
            protocols=[protocol],
            overrides={**request.overrides, **variant.overrides},
            label=variant.name,
            experiment=EXPERIMENT,
        )
        for protocol in request.protocols
        for variant in variants
    ]
    for one in requests:
        one.check()
    for one in requests:
        yield from run_accuracy(one, reporter)
