"""The command `arvid` and its subcommands.

Exit codes: 0 success, 1 a fault found (doctor, data check) or the reader of the output ended first (`| head`), 2 wrong
use or bad input, 130 interrupted (SIGINT), 143 terminated (SIGTERM), 138 ended by SIGUSR1 (fit, which saves first; see
docs/runs.md).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import keyword
import os
import select
import signal
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import arvid
from arvid.commands._sampling import CommandParser
from arvid.commands._suites import SUITES, run_suite
from arvid.errors import UserError
from arvid.processes import end_with_parent
from arvid.trust import trusting

COMMANDS = {
    "demo": "train two paradigms on two token types and compare them, without data or GPU",
    "fit": "train a tokenizer or a generator",
    "validate": "validation loss of a checkpoint",
    "plan": "memory, FLOPs, days and sampling of a training, before it runs",
    "data": "prepare a published dataset, or check a configuration's clips",
    "encode": "encode a setting's clips into token shards",
    "reconstruct": "reconstruct a video with a tokenizer, with PSNR, SSIM and LPIPS",
    "sample": "generate clips from a checkpoint",
    "evaluate": "score runs, videos or pipelines under a protocol, or run a benchmark suite",
    "stats": "measure real clips once, so that evaluations need no videos",
    "compare": "table and page of several runs",
    "bench": "run a benchmark of a paper",
    "import": "convert a published checkpoint to arvid's own format",
    "export": "write a model in the published layout of another code base",
    "push": "publish a run on the Hugging Face Hub",
    "weights": "list, download and check published weights of metrics",
    "doctor": "check this installation",
}
LIGHTNING_COMMANDS = ("fit", "validate")
TAKE_FIT_OPTIONS = ("plan",)
"""Commands that take the options of `fit` besides their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Bad input gives one line on stderr, no traceback."""
    own_process = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end_with_parent()
    _open_outputs()
    try:
        code = _run(arguments, own_process=own_process)
        sys.stdout.flush()  # here, where a closed pipe is handled, and not when Python ends
        return code
    except UserError as error:
        print(f"arvid: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        return 1
    except OSError as error:  # such as a full disk or a missing permission
        place = f" ({error.filename})" if error.filename else ""
        print(f"arvid: error: {error.strerror or error}{place}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("arvid: interrupted", file=sys.stderr)
        return 130
    except Exception:
        if _exit_code:  # a library, during its import, turned SystemExit into its own error
            return _exit_code
        raise


def _open_outputs() -> None:
    """Drop output that has nowhere to go: some schedulers start programs with closed outputs (`>&- 2>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the process ends


def _stdout_is_closed() -> bool:
    """Whether nobody reads the output any more. If so, what is left of it is dropped."""
    output = sys.stdout.fileno()
    events = select.poll()
    events.register(output, 0)  # errors are reported in any case
    if not events.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _run(arguments: list[str], *, own_process: bool) -> int:
    _quieten()
    if arguments[:1] == ["demo"]:
        arguments = ["bench", *arguments]
    if arguments and arguments[0] in LIGHTNING_COMMANDS:
        if own_process:
            _import_training()
        from arvid.training.cli import run_lightning

        run_lightning(arguments)
        return 0
    if arguments[:1] == ["evaluate"] and arguments[1:] and arguments[1] in SUITES:
        return run_suite(arguments[1], arguments[2:])
    signal.signal(signal.SIGTERM, _leave)
    parser = argparse.ArgumentParser(
        prog="arvid",
        description="Comparative research on autoregressive video generation.",
        epilog="`arvid COMMAND --help` explains a command with an example.",
    )
    parser.add_argument("--version", action="version", version=f"arvid {arvid.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=CommandParser
    )
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:  # other commands are not imported
            module = _module(name)
            subparser.description = module.__doc__
            module.add_arguments(subparser)
    options, others = parser.parse_known_args(arguments)
    module = _module(options.command)
    if others and options.command not in TAKE_FIT_OPTIONS:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    options.fit_options = others
    with trusting(getattr(options, "trust", ())):
        code: int = module.run(options)
    return code


def _import_training() -> None:
    """Import what trains, without garbage collection: half a million new objects, of which almost none is garbage.

    Later collections leave these objects out. Together this saves a third of the time to the first step of a small run.
    """
    gc.disable()
    try:
        importlib.import_module("arvid.training.cli")
        gc.freeze()
    finally:
        gc.enable()


def _leave(number: int, _frame: object) -> NoReturn:
    """End by an exception, so that `finally` blocks end child processes and remove temporary files."""
    global _exit_code
    _exit_code = 128 + number
    raise SystemExit(_exit_code)


_exit_code = 0
"""Exit code after a signal; 0 before one."""


def _module(command: str) -> ModuleType:
    """A command's module. It has the command's name, with an underscore if that is a Python keyword."""
    name = f"{command}_" if keyword.iskeyword(command) else command
    return importlib.import_module(f"arvid.commands.{name}")


def _quieten() -> None:
    """Silence messages of libraries that do not concern the user."""
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode.*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")


if __name__ == "__main__":
    sys.exit(main())
