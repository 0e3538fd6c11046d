"""python -m torch_mlxnorm.bench.tokens"""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="pip install transformers")

from torch_mlxnorm.bench import tokens  # noqa: E402


def test_prints_a_line_for_each_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert tokens.main(["--type", "llama", "qwen3", "--turns", "2"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["tokens", "a", "second", "own", "norms", "accelerated"]
    assert [line.split()[0] for line in lines] == ["llama", "qwen3"]
    for line in lines:
        assert all(float(number) > 0 for number in line.split()[1:4])
        assert line.split()[4].endswith("x")
