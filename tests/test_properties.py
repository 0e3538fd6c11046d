"""Properties that hold for any tensors, of any layout, values and options (hypothesis)."""

from __future__ import annotations

from random import Random

from cases import check_case, random_case
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from ops import Op, each_op

# The same examples in every run, so that CI fails for what changed.
repeatable = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    print_blob=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@each_op
@repeatable
@given(random=st.randoms(use_true_random=False))
def test_any_call(device: str, op: Op, random: Random) -> None:
    case = random_case(random, op)
    note(repr(case))
    check_case(case, device)
