"""The errors that a user can cause. Each carries one sentence that names the field, the value and what is allowed."""


class UserError(ValueError):
    """Something the user asked for cannot be done; `str(error)` is the one sentence to show (exit code 2)."""


class ConfigError(UserError):
    """A field or an option of a config is unknown, of the wrong type or out of range."""


class PluginError(ConfigError):
    """A module of `config.plugins` cannot be imported."""


class DataError(UserError):
    """A data set is unknown, absent, not prepared, or corrupt."""


class WorkdirError(UserError):
    """A run folder cannot be used: not writable, in use, of another config, or damaged."""


class DamagedError(WorkdirError):
    """A file of a run folder was read, and what it holds cannot be used: damaged, or of another version."""


class DivergedError(RuntimeError):
    """Training stopped being finite (exit code 3); what was recorded until then is kept.

    Attributes:
        round: the first round, counted from 0, that had no finite model.
    """

    def __init__(self, message: str, round_index: int):
        super().__init__(message)
        self.round = round_index
