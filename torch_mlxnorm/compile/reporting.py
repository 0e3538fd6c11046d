"""What a compiled model really calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

_NAMESPACE = "mlxnorm::"
_NORMS = {
    "rms_norm_triple": 3,
    "rms_norm_add_rms_norm": 2,
    "qk_norm_rope": 2,
    "qkv_norm_rope": 3,
    "fused_post_attn_triple_norm": 4,
    "fused_post_ff_norm2_endlayer": 2,
    "fused_moe_wsum_post_ff_norm2_endlayer": 2,
}


@dataclass(frozen=True)
class Report(Mapping[str, int]):
    """Calls by operator, the most frequent first: ``report["rms_norm"]``, 0 for one that was not
    called. ``str`` is a table."""

    counts: Mapping[str, int]

    def __getitem__(self, op: str) -> int:
        return self.counts.get(op, 0)

    def __contains__(self, op: object) -> bool:
        return op in self.counts

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def calls(self) -> int:
        """All calls."""
        return sum(self.counts.values())

    @property
    def norms(self) -> int:
        """The norms that these calls compute."""
        return sum(_NORMS.get(op, 1) * count for op, count in self.counts.items())

    def __str__(self) -> str:
        lines = [f"{count:6d}  {op}" for op, count in self.counts.items()]
        return "\n".join([*lines, f"{self.calls:6d}  calls, {self.norms} norms"])


def report(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Report:
    """Counts the operators that a call runs.

    The call is made twice: once to compile what is not compiled yet, once to count. So it tells
    what runs, wherever that came from: a backend, a cache on disk, an exported program, or a model
    that calls the operators itself. What a call does beside (a cache of keys that grows) it does
    twice.

    Args:
        function: a compiled model, or any other callable.
        args, kwargs: what to call it with.

    Returns:
        A :class:`Report`: a mapping from names of operators to counts, and a table as text.

    Raises:
        What ``function`` raises.
    """
    function(*args, **kwargs)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function(*args, **kwargs)
    counts: Counter[str] = Counter()
    for event in profiled.events() or ():
        if event.name.startswith(_NAMESPACE):
            counts[event.name.removeprefix(_NAMESPACE)] += 1
    return Report(dict(counts.most_common()))
