"""What documents say of the package holds: the README's example runs, calls and flags that others
name exist."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import torch_mlxnorm
from torch_mlxnorm import doctor

ROOT = Path(__file__).parents[1]


def test_example() -> None:
    readme = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["y"].shape == names["x"].shape


def calls(document: str) -> Iterator[ast.Call]:
    """Of the package, in code within the text."""
    for code in re.findall(r"`([^`\n]+)`", (ROOT / document).read_text().partition("\n| ")[2]):
        match re.fullmatch(r"(?:torch_mlxnorm\.)?(\w+)\((.*)\)", code):
            case re.Match() as call if call[1] in torch_mlxnorm.__all__:
                yield ast.parse(code.replace("...", "_"), mode="eval").body


def bind(call: ast.Call) -> None:
    name = ast.unparse(call.func).removeprefix("torch_mlxnorm.")
    keywords = {keyword.arg: None for keyword in call.keywords}
    inspect.signature(getattr(torch_mlxnorm, name)).bind(*call.args, **keywords)


def test_calls_in_place_of_others() -> None:
    """docs/coming-from.md: with arguments that they take."""
    found = list(calls("docs/coming-from.md"))
    assert len(found) >= 10
    for call in found:
        bind(call)
    with pytest.raises(TypeError):
        bind(ast.parse("rms_norm(x, w, epsilon=1e-6)", mode="eval").body)


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")))
def test_issue_forms_ask_for_the_doctor(form: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (arguments,) = re.findall(r"`python -m torch_mlxnorm.doctor ([^`]+)`", form.read_text())
    with pytest.raises(SystemExit, match="0"):
        doctor.main([*arguments.split(), "--help"])
    flags = set(re.findall(r"--\w+", arguments))
    assert flags and flags <= set(re.findall(r"--\w+", capsys.readouterr().out))


def test_the_version_that_is_cited() -> None:
    cited = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == [torch_mlxnorm.__version__]
