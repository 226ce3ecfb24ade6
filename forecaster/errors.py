"""The errors a caller can act on.

One small tree; the text of each is a single clear line that says what was found, what was expected and for which
series. Nothing here depends on anything else, so every module may raise these::

    ForecasterError
    ├── InputError (also ValueError)      what the caller gave is wrong
    │   ├── PanelError                    ... in a data frame or a history
    │   └── ConfigError                   ... in a configuration
    └── ArtifactError                     a stored model or state is damaged, of another format, or missing
"""

__all__ = ["ArtifactError", "ConfigError", "ForecasterError", "InputError", "PanelError"]


class ForecasterError(Exception):
    """Root of every error raised on purpose by this project."""


class InputError(ForecasterError, ValueError):
    """The caller's input is wrong; nothing was changed."""


class PanelError(InputError):
    """A data frame or history breaks a rule of the panel."""


class ConfigError(InputError):
    """A configuration names an unknown key or holds an impossible value."""


class ArtifactError(ForecasterError):
    """A stored model or stored state is damaged, of another format, or missing."""
