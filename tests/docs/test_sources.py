"""What the pages are made of: formulas and links (docs/site)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Literal, get_origin

import pytest

import torch_mlxnorm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs/site"))

from mathml import mathml  # noqa: E402
from sources import Layout  # noqa: E402

TABLE = '<math display="block" alttext="{}"><mtable><mtr><mtd>{}</mtd></mtr></mtable></math>'
Y = "<mi>y</mi></mtd><mtd><mo>=</mo></mtd><mtd>"
LEFT, RIGHT = '<mo stretchy="false">(</mo>', '<mo stretchy="false">)</mo>'
SET = {
    "y = a * (b + c)": "<mrow><mi>a</mi><mo>·</mo><mrow>"
    f"{LEFT}<mrow><mi>b</mi><mo>+</mo><mi>c</mi></mrow>{RIGHT}</mrow></mrow>",
    "y = a - (b - c)": "<mrow><mi>a</mi><mo>−</mo><mrow>"
    f"{LEFT}<mrow><mi>b</mi><mo>−</mo><mi>c</mi></mrow>{RIGHT}</mrow></mrow>",
    "y = x * rsqrt(eps)": "<mfrac><mi>x</mi><msqrt><mi>ε</mi></msqrt></mfrac>",
    "y = w2[..., k, :]": "<msub><msub><mi>w</mi><mn>2</mn></msub><mtext>k</mtext></msub>",
    "y = weight_offset    # 1 in Gemma": "<mi>weight_offset</mi></mtd>"
    "<mtd><mtext>1 in Gemma</mtext>",
    "y = -x**2": "<mrow><mo>−</mo><msup><mi>x</mi><mn>2</mn></msup></mrow>",
}


@pytest.mark.parametrize("formula", SET)
def test_formula(formula: str) -> None:
    assert mathml(formula) == TABLE.format(formula, Y + SET[formula])


@pytest.mark.parametrize(
    ("formula", "error"), [("y = x @ w", NotImplementedError), ("y = x rounded", SyntaxError)]
)
def test_what_is_no_formula_is_an_error(formula: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        mathml(formula)


def test_links(tmp_path: Path) -> None:
    """To documents, operators, source files and folders; those elsewhere stay."""
    layout = Layout(tmp_path)
    links = {
        "models.md": "/models.md",
        "ops.md#rms_norm_add": "/ops/rms_norm_add.md",
        "ops.md#tensors": "/ops.md#tensors",
        "../README.md": "/index.md",
        "../CONTRIBUTING.md": "/contributing.md",
        "../torch_mlxnorm/reference.py": "/source/torch_mlxnorm/reference.py.md",
        "../tests/metal_sim/README.md": "/source/tests/metal_sim/README.md",
        "../examples": "/source/examples/README.md",
        "../tests/darwin": "/source/tests/darwin.md",
        "https://arxiv.org/abs/1910.07467": "https://arxiv.org/abs/1910.07467",
    }
    layout.document("docs/design.md", "design.md", "".join(f"[there]({link})\n" for link in links))
    turned = (tmp_path / "design.md").read_text()
    assert turned == "".join(f"[there]({page})\n" for page in links.values())
    for page in links.values():
        assert "/source/" not in page or (tmp_path / page[1:]).exists()
    assert "def rms_norm(" in (tmp_path / "source/torch_mlxnorm/reference.py.md").read_text()


def test_a_link_to_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="torch_mlxnorm/none.py"):
        Layout(tmp_path).document("docs/ops.md", "ops.md", "[none](../torch_mlxnorm/none.py)")


def test_a_document_that_is_called_by_its_path_gets_its_title(tmp_path: Path) -> None:
    text = "[docs/models.md](docs/models.md), [examples](examples), [the ops](docs/ops.md)\n"
    Layout(tmp_path).document("README.md", "index.md", text)
    expected = "[](/models.md), [examples](/source/examples/README.md), [the ops](/ops.md)\n"
    assert (tmp_path / "index.md").read_text() == expected


def test_every_public_name_has_its_place() -> None:
    """An operator has a page of its own, made of ops.md; the rest is in the Python API."""
    api = (ROOT / "docs/site/api.md").read_text()
    shown = set(re.findall(r"^\.\. auto(?:class|function):: (\w+)", api, re.MULTILINE))
    operators = set(torch_mlxnorm._C.ops())
    kinds = {name for name in torch_mlxnorm.__all__ if callable(getattr(torch_mlxnorm, name))}
    literals = {name for name in kinds if get_origin(getattr(torch_mlxnorm, name)) is Literal}
    assert kinds - literals == shown | operators
