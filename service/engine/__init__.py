"""Folds and decodes: the states of all resident streams, micro-batch by micro-batch.

It knows store and models; no HTTP, no registry.
"""

from service.engine.engine import Engine, Limits

__all__ = ["Engine", "Limits"]
