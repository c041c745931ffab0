"""Runs `arvid` commands in several processes at once, as torchrun or srun would start them.

A program of its own: it imports arvid once and forks for each process, since an import takes longer than most commands
of the tests. It reads a JSON object a line: arguments, folder, and for each process environment and log file. It
answers with a line of exit codes.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import resource
import signal
import sys
import traceback

import arvid.commands.encode
import arvid.evaluation.rows
import arvid.suites.vbench.dimensions
import arvid.training.cli  # noqa: F401
from arvid.cli import main
from arvid.training.generator_module import GeneratorModule


def fork(arguments: list[str], folder: str, environment: dict[str, str], log: str) -> int:
    """Start a command; returns its process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = ["arvid", *arguments]
        if "ARVID_TEST_KILL_AT" in environment:
            kill_at(int(environment["ARVID_TEST_KILL_AT"]))
        if "ARVID_TEST_KILL_IN" in environment:
            kill_in(*environment["ARVID_TEST_KILL_IN"].split(":"))
        if "ARVID_TEST_FILE_BYTES" in environment:
            limit = int(environment["ARVID_TEST_FILE_BYTES"])
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        code = main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill_at(step: int) -> None:
    """Have this process end without notice when a training reaches a step."""
    training_step = GeneratorModule.training_step

    def killed_at_last(self: GeneratorModule, *arguments: object) -> object:
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return training_step(self, *arguments)  # type: ignore[arg-type]

    GeneratorModule.training_step = killed_at_last  # type: ignore[assignment,method-assign]


def kill_in(module: str, name: str, count: str) -> None:
    """Have this process end without notice when a module's function is called for the `count`-th time."""
    function, calls = getattr(sys.modules[module], name), itertools.count(1)

    def killed(*arguments: object, **options: object) -> object:
        if next(calls) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(sys.modules[module], name, killed)


gc.freeze()  # so that a forked process does not scan everything that was imported

for line in sys.stdin:
    job = json.loads(line)
    pids = [fork(job["arguments"], job["folder"], *process) for process in job["processes"]]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)
