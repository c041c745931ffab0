"""The subcommands of `arvid`, one module each: `add_arguments(parser)` and `run(options) -> exit code`."""
