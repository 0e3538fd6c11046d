"""What was registered, and what not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ._backend import Dtypes


@dataclass(frozen=True)
class Entry:
    """A function, with dtypes that it was tried with.

    Attributes:
        function: its name.
        op: the operator and its options; ``None`` if the function's own code runs.
        parameters: of the function, whose dtypes ``dtypes`` are.
        dtypes: for which this holds.
        equal: the smallest share of elements that were equal, or within four roundings in float32,
            on random input on the CPU; of the best candidate, the largest, where there is no op.
        reason: why its own code runs.
    """

    function: str
    op: str | None = None
    parameters: tuple[str, ...] = ()
    dtypes: tuple[Dtypes, ...] = ()
    equal: float | None = None
    reason: str | None = None

    def rows(self) -> list[str]:
        """A line for all dtypes of the first parameter that allow the same others."""
        others: dict[frozenset[Dtypes], list[str]] = {}
        for first in dict.fromkeys(dtypes[0] for dtypes in self.dtypes):
            rest = frozenset(dtypes[1:] for dtypes in self.dtypes if dtypes[0] == first)
            others.setdefault(rest, []).append(_name(first))
        lines = []
        for rest, firsts in others.items():
            columns = [
                firsts,
                *(sorted({_name(d) for d in column}) for column in zip(*rest, strict=True)),
            ]
            texts = ("any" if len(names) == 3 else " or ".join(names) for names in columns)
            lines.append(", ".join(f"{p} {t}" for p, t in zip(self.parameters, texts, strict=True)))
        return lines


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass
class Report:
    """Prints as a table."""

    title: str
    entries: list[Entry] = field(default_factory=list)
    devices: tuple[str, ...] = ()
    undo: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def replaced(self) -> list[str]:
        """Functions that an operator computes for some dtypes."""
        return list(dict.fromkeys(entry.function for entry in self.entries if entry.op))

    @property
    def left_alone(self) -> list[str]:
        """Functions of which only the own code runs."""
        names = dict.fromkeys(entry.function for entry in self.entries)
        return [name for name in names if name not in self.replaced]

    def restore(self) -> None:
        """Undoes it."""
        self.undo()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        entries = []
        for entry in self.entries:
            dtypes = [[_name(dtype) for dtype in each] for each in entry.dtypes]
            entries.append({**dataclasses.asdict(entry), "dtypes": dtypes})
        return {"title": self.title, "devices": list(self.devices), "entries": entries}

    def __str__(self) -> str:
        where = f" on {' and '.join(self.devices)}" if self.replaced else ""
        head = f"{self.title}: {len(self.replaced)} functions by operators{where}, "
        head += f"{len(self.left_alone)} left alone"
        return "\n".join([head, *self._rows()])

    def _rows(self) -> Iterator[str]:
        """What holds for several functions once."""
        groups: dict[Any, list[Entry]] = {}
        for entry in self.entries:
            reason = entry.reason if entry.equal is None else ""  # that has a share
            groups.setdefault((entry.op, reason, entry.dtypes), []).append(entry)
        for entries in groups.values():
            first, functions = entries[0], ", ".join(entry.function for entry in entries)
            if first.op is not None:
                equal = min(entry.equal or 0.0 for entry in entries)
                yield f"  {functions}: {first.op}, {equal:.4%} equal"
                yield from (f"    {row}" for row in first.rows())
            else:
                dtypes = " of other dtypes" if functions.split(", ")[0] in self.replaced else ""
                yield f"  {functions}{dtypes}: left alone, {first.reason}"
