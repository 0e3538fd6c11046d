"""Programs that need PyTorch, each in a process of its own: forked from one that has imported it,
which is a second less for each. See `run_programs` of beside.py."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn


@dataclass(frozen=True)
class Program:
    code: str
    folder: str = "."
    path: Sequence[str] = ()  # before the rest of sys.path
    environment: Mapping[str, str] = field(default_factory=dict)


def become(program: Program, files: str) -> NoReturn:
    """What this process is from now on."""
    for stream in (1, 2):
        os.dup2(os.open(f"{files}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
    os.environ.update(program.environment)
    os.chdir(program.folder)
    sys.path[:0] = program.path
    sys.argv = ["-c"]
    try:
        exec(compile(program.code, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to let go of all that PyTorch has would take a second


def main() -> None:
    import torch  # noqa: F401

    programs = [Program(**program) for program in json.load(sys.stdin)]
    running: dict[int, int] = {}
    codes: dict[int, int] = {}

    def wait_for_one() -> None:
        pid, status = os.wait()
        codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)

    for i, program in enumerate(programs):
        if len(running) == (os.cpu_count() or 1):
            wait_for_one()
        pid = os.fork()
        if pid == 0:
            become(program, f"{sys.argv[1]}/{i}")
        running[pid] = i
    while running:
        wait_for_one()
    print(json.dumps(codes))


if __name__ == "__main__":
    sys.path[0] = ""  # as `python -c` has it, and not this folder
    main()
