"""The error class for users. This module imports nothing, so commands can parse arguments without torch."""


class UserError(ValueError):
    """An error that the user can fix. The command line prints its message without a traceback."""
