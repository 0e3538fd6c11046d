"""`pytest --op NAME`, `make test OP=NAME`: the tests of one op."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType

import pytest
from ops import OPS, Op


def tests_of(name: str, items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """Those that have it among their parameters and, of those that have no op there, those that
    speak of it and of no other."""
    if name not in OPS:
        raise pytest.UsageError(f"--op {name}: the ops are {', '.join(OPS)}")
    for item in items:
        if isinstance(item, pytest.Function):
            of = ops_of_parameters(item) or ops_spoken_of(item.function)
            if of == {name}:
                yield item


def ops_of_parameters(item: pytest.Function) -> set[str]:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {name for name in map(op_of, values) if name is not None}


def op_of(value: object) -> str | None:
    """Of an op, of its name, or of what has one."""
    if isinstance(value, str):
        return value if value in OPS else None
    op = value if isinstance(value, Op) else getattr(value, "op", None)
    return op.name if isinstance(op, Op) else None


def ops_spoken_of(function: FunctionType) -> set[str]:
    words: set[object] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        words.update(code.co_names, code.co_consts)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {word for word in words if isinstance(word, str) and word in OPS}
