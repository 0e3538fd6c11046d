"""python -m torch_mlxnorm.bench.tokens"""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="pip install transformers")

from torch_mlxnorm.bench import tokens  # noqa: E402


@pytest.mark.parametrize(
    ("arguments", "more"), [(["llama", "qwen3"], []), (["llama", "--compiled"], ["passes"])]
)
def test_prints_a_line_for_each_family(
    capsys: pytest.CaptureFixture[str], arguments: list[str], more: list[str]
) -> None:
    assert tokens.main(["--turns", "2", "--type", *arguments]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    candidates = ["own", "norms", "accelerated", *more]
    assert head.split() == ["tokens", "a", "second", *candidates]
    assert [line.split()[0] for line in lines] == [a for a in arguments if a in tokens.TYPES]
    for line in lines:
        _, *columns = line.split()
        assert all(float(number) > 0 for number in columns[::2])
        assert [ratio[-2:] for ratio in columns[1::2]] == ["x)"] * len(candidates)
