"""Streaming probabilistic forecasts from carried recurrent state.

The library: panel in, trained forecaster out, and the verbs ``warm_up``, ``observe`` and ``forecast`` over an explicit
`StreamState`. Pure: no clock, network, environment or registry. Training lives in `forecaster.training`, the only
part that needs Lightning.
"""

from forecaster.backtesting import Backtest, backtest
from forecaster.calendar import Calendar
from forecaster.config import Config, CovariatesConfig, NetworkConfig, TrainingConfig
from forecaster.errors import ArtifactError, ConfigError, ForecasterError, InputError, PanelError
from forecaster.forecaster import Forecaster
from forecaster.panel import Panel
from forecaster.state import StreamState

__all__ = [
    "ArtifactError",
    "Backtest",
    "Calendar",
    "Config",
    "ConfigError",
    "CovariatesConfig",
    "Forecaster",
    "ForecasterError",
    "InputError",
    "NetworkConfig",
    "Panel",
    "PanelError",
    "StreamState",
    "TrainingConfig",
    "backtest",
]
