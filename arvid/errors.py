"""The error that users see. This module imports nothing, so that commands can parse their arguments without torch."""


class UserError(ValueError):
    """Something the user can mend. The command line prints its message alone, without a traceback."""
