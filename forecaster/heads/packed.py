"""The decoders of a head side by side: what all members say of some rows, in two compiled loops and without gradient.

The same numbers as `Decoder.forward`, to rounding. Of a forecast of few rows most of the time is the interpreter's, and
members would each need a dozen operations of PyTorch.

Axes: N row, M member, P hidden size of a member, F feature, A anchor, R row of raw shape, H horizon step, X number
known of a coming step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forecaster import kernels
from forecaster.heads.decoder import Decoder
from forecaster.scaling import memory

__all__ = ["PackedDecoders"]


class PackedDecoders:
    """The weights of decoders as the loops read them: a copy.

    Parameters
    ----------
    decoders
        Of the members, all of the same sizes.
    """

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        first = decoders[0]
        self._local = [decoder.local for decoder in decoders if decoder.local is not None]
        self._rows = 1 + 1 + first.rows[-1]
        self._context = _inputs_first([decoder.context.weight for decoder in decoders])
        self._offset = memory(torch.stack([decoder.context.bias.detach() for decoder in decoders]))
        self._mixture = _inputs_first([decoder.mixture.weight for decoder in decoders])
        self._autoregression = _inputs_first([decoder.autoregression.weight for decoder in decoders])
        self._bias = memory(torch.stack([decoder.bias.detach() for decoder in decoders]))
        curves = [decoder.curves.detach() for decoder in decoders if decoder.curves is not None]
        self._curves = memory(torch.stack(curves) if curves else torch.empty(0, 0, 0))

    def decode(self, hidden: Tensor, features: Tensor, anchors: Tensor, known: Tensor | None = None) -> Tensor:
        """Baseline, correction and rows of raw shape of every step, as of `Decoder.forward`.

        Parameters
        ----------
        hidden, features, anchors, known
            Shapes [..., M x P], [..., F], [..., A, H] and [..., H, X]; None if nothing is known.

        Returns
        -------
        Tensor
            Shape [M, N, 2 + R, H], with all leading axes as one.
        """
        straight, inputs, choices = _rows_of(hidden, 1), _rows_of(features, 1), _rows_of(anchors, 2)
        members, size = self._offset.shape
        context = torch.empty(members, len(straight), size)
        kernels.contexts(straight, self._context, self._offset, context.numpy())
        amendments = context.new_empty(0, 0, 0, 0)
        if known is not None and self._local:
            told = known.flatten(0, -3)
            amendments = torch.stack([local(told, part) for local, part in zip(self._local, context, strict=True)])
        found = context.new_empty(members, len(straight), self._rows, choices.shape[-1])
        kernels.decode(
            context.numpy(), inputs, choices, self._mixture, self._autoregression, self._curves,
            self._bias, amendments.numpy(), found.numpy(),
        )  # fmt: skip
        return found


def _rows_of(tensor: Tensor, axes: int) -> kernels.Float32:
    """Memory of a tensor whose last axes are kept and all before them are one."""
    return memory(tensor if tensor.dim() == axes + 1 else tensor.flatten(0, -axes - 1))


def _inputs_first(weights: Sequence[Tensor]) -> kernels.Float32:
    """Weights [outputs, inputs] as an array [M, inputs, outputs]."""
    return memory(torch.stack([weight.detach().t() for weight in weights]))
