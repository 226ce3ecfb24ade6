"""Training: the only part of the library that needs Lightning.

Wraps the network in a Lightning module that carries state from chunk to chunk (truncated back-propagation through
time) and fits it on a panel. What comes out is a plain `Forecaster`.
"""

from forecaster.training.fitting import Fitted, fit

__all__ = ["Fitted", "fit"]
