"""python -m torch_mlxnorm.count"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="pip install transformers")

from tiny_models import build, tokens  # noqa: E402

from torch_mlxnorm import count  # noqa: E402
from torch_mlxnorm.integrations import _swap  # noqa: E402
from torch_mlxnorm.integrations.transformers import accelerate, restore  # noqa: E402


def test_lines_of_a_model() -> None:
    model = build("gemma4_moe")
    token = tokens(1, 1)
    found = count.count(model, lambda: model(token))
    first, outside = found.lines
    assert (first.name, first.number, first.before, first.after) == ("model.layers.0", 2, 111, 7)
    assert (outside.before, outside.after) == (9, 1)
    assert count.kernels(lambda: model(token)) == found.before
    accelerate(model)
    assert count.kernels(lambda: model(token)) == found.after < found.before / 2
    restore(model)
    assert not any(_swap.is_swapped(module) for module in model.modules())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("qwen3").save_pretrained(tmp_path)
    assert count.main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "model.layers.0       1 times    44 -> 4" in output
    assert "all kernels of the step:" in output
