"""Work of other processes, done beside the tests of this one: fixtures of the session, begun when
the tests have been collected, on the processors that these leave idle.

    @beside
    def answer() -> str:
        return run(["deep", "thought"]).stdout

    def test_the_answer(answer: str) -> None: ...

Such a function runs in a thread, while tests change this process for a moment (its environment,
`sys.platform`, functions of PyTorch): it leaves the work to processes that `run` starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, TypeVar

import forked
import pytest
from forked import Program

ENVIRONMENT = dict(os.environ)
PROCESSORS = os.cpu_count() or 1

T = TypeVar("T")
U = TypeVar("U")

_functions: dict[str, Callable[[], Any]] = {}
_begun: dict[str, Future[Any]] = {}
_threads = ThreadPoolExecutor(max(1, PROCESSORS - 1))


def beside(function: Callable[[], T]) -> Callable[[], T]:
    """The fixture that gives what the function returns."""
    name = function.__name__
    assert name not in _functions, f"two fixtures are called {name}"
    _functions[name] = function

    @pytest.fixture(scope="session", name=name)
    def value() -> T:
        return _begin(name).result()

    return value


def waits(item: pytest.Item) -> bool:
    """Whether a test asks for such a fixture."""
    return any(name in _functions for name in getattr(item, "fixturenames", ()))


def begin_for(items: Iterable[pytest.Item]) -> None:
    for item in filter(waits, items):
        if any(mark.args[:1] == (True,) for mark in item.iter_markers("skipif")):
            continue
        for name in item.fixturenames:  # type: ignore[attr-defined]
            if name in _functions:
                _begin(name)


def end() -> None:
    _threads.shutdown(cancel_futures=True)


def _begin(name: str) -> Future[Any]:
    if name not in _begun:
        _begun[name] = _threads.submit(_functions[name])
    return _begun[name]


def run(
    command: Sequence[str | Path],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    text: str | None = None,
    timeout: float | None = None,
) -> CompletedProcess[str]:
    """In the environment as it was before any test, with changes."""
    return subprocess.run(
        [str(argument) for argument in command],
        cwd=folder,
        env=ENVIRONMENT | dict(environment or {}),
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def side_by_side(function: Callable[[T], U], arguments: Iterable[T]) -> list[U]:
    """What the function returns for each, as many at a time as there are processors."""
    with ThreadPoolExecutor(PROCESSORS) as pool:
        return list(pool.map(function, arguments))


def run_programs(programs: Sequence[Program]) -> list[CompletedProcess[str]]:
    """Each in a process that has imported PyTorch; as many at a time as there are processors."""
    if sys.platform == "darwin":  # Apple's frameworks do not survive a fork
        return side_by_side(_run_alone, programs)
    text = json.dumps([asdict(program) for program in programs])
    with tempfile.TemporaryDirectory() as folder:
        server = run([sys.executable, forked.__file__, folder], text=text)
        assert server.returncode == 0, server.stderr
        codes = json.loads(server.stdout)
        outputs = [
            [Path(folder, f"{i}.{stream}").read_text() for stream in (1, 2)]
            for i in range(len(programs))
        ]
    return [
        CompletedProcess("", codes[str(i)], out, error) for i, (out, error) in enumerate(outputs)
    ]


def _run_alone(program: Program) -> CompletedProcess[str]:
    environment = {**program.environment, "PYTHONPATH": os.pathsep.join(program.path)}
    command = [sys.executable, "-c", f"import torch\n{program.code}"]
    return run(command, folder=Path(program.folder), environment=environment)
