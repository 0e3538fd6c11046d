"""What was replaced in a model, and what not."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A module of the model.

    Attributes:
        path: its name in the model.
        class_name: of the module.
        op: the operator and its options, or what the layer's forward calls now; ``None`` if it was
            left alone.
        equal: the share of elements that were equal, or within four roundings in float32, on random
            input; of the best candidate if it was left alone.
        launches_before, launches_after: kernels of the norms, and of what is fused with them, in a
            call.
        reason: why it was left alone.
    """

    path: str
    class_name: str
    op: str | None = None
    equal: float | None = None
    launches_before: int = 0
    launches_after: int = 0
    reason: str | None = None


@dataclass
class Report:
    """Entries of a model, in its order. Prints as a table, a line for what is alike."""

    entries: list[Entry] = field(default_factory=list)
    undo: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def replaced(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.op is not None]

    @property
    def left_alone(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.op is None]

    @property
    def launches_before(self) -> int:
        return sum(entry.launches_before for entry in self.replaced)

    @property
    def launches_after(self) -> int:
        return sum(entry.launches_after for entry in self.replaced)

    def restore(self) -> None:
        """Gives the model its own forwards back."""
        self.undo()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "launches_before": self.launches_before,
            "launches_after": self.launches_after,
            "entries": [dataclasses.asdict(entry) for entry in self.entries],
        }

    def __str__(self) -> str:
        lines = [
            f"{len(self.replaced)} modules replaced, {len(self.left_alone)} left alone; "
            f"kernels of them in a call: {self.launches_before} -> {self.launches_after}"
        ]
        return "\n".join([*lines, *self._rows()])

    def _rows(self) -> Iterator[str]:
        groups: dict[Any, list[Entry]] = {}
        for entry in self.entries:
            place = re.sub(r"\d+", "*", entry.path)
            groups.setdefault((place, entry.class_name, entry.op, entry.reason), []).append(entry)
        for (_, class_name, op, reason), entries in groups.items():
            first = entries[0]
            more = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
            if op is None:
                yield f"  {first.path}{more} ({class_name}): left alone, {reason}"
                continue
            shares = [e.equal for e in entries if e.equal is not None]
            equal = f"{min(shares):.4%} equal" if shares else "not compared"
            launches = f"{first.launches_before} -> {first.launches_after}"
            yield f"  {first.path}{more} ({class_name}): {op}, {equal}, {launches}"
