"""What does not compile: tables of ops (csrc/ops) that contradict themselves or their formula."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OP = """
#include "csrc/ops/fits.h"
#include "shaders/formulas/formula.h"

using namespace mlxnorm;

struct Table {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"residual", Role::input},
      {"post_attn_weight", Role::weight, Passing::optional},
      {"scale", Role::scale, Passing::keyword},
  };
  static constexpr int kSums = 2;
  static constexpr ResultSpec kResults[] = {{"out", "x"}, {"w2_out", "residual"}};
  static constexpr auto& kOptions = kFusedOptions;
};

struct Formula {
  enum Tensor { kX, kResidual, kPostAttnWeight, kScale, kTensors };
  enum Result { kOut, kW2Out, kResults };
  enum { kSums = 2, kFirst = 0 };
};

constexpr OpTable table = table_of<Table>(Op::rms_norm);
static_assert(fits<Table, Formula>());
static_assert(table.positional == 3 && table.likes[0] == 0 && table.likes[1] == 1);
"""

TENSORS, RESULTS = "names of the formula's tensors", "names of the formula's results"

# What is wrong: text, what it becomes, what the compiler says.
MISTAKES = {
    "a tensor that the formula forgets": ("kScale, kTensors", "kTensors", "tensors of the formula"),
    "a tensor that the table forgets": ("kScale, ", "kScale, kShift, ", "tensors of the formula"),
    "tensors in another order": ("kX, kResidual", "kResidual, kX", TENSORS),
    "a tensor by another name": ("kPostAttnWeight", "kWeight", TENSORS),
    "a result that the formula forgets": ("kW2Out, ", "", "results of the formula"),
    "results in another order": ("kOut, kW2Out", "kW2Out, kOut", RESULTS),
    "a number of sums": ("{ kSums = 2", "{ kSums = 1", "sums of the formula"),
    "a result like an operand": ('{"out", "x"}', '{"out", "scale"}', "results_are_like_inputs"),
    "a result like nothing": ('{"out", "x"}', '{"out", "y"}', "results_are_like_inputs"),
    "an operand in front": ('{"x", Role::input}', '{"x", Role::weight}', "others are compared"),
    "a keyword in front": (
        '{"residual", Role::input}',
        '{"residual", Role::input, Passing::keyword}',
        "keywords_come_last",
    ),
    "a default in front": (
        '{"residual", Role::input}',
        '{"residual", Role::input, Passing::defaulted}',
        "keywords_come_last",
    ),
    "groups of experts": (
        """  };
  static constexpr int kSums = 2;
  static constexpr ResultSpec kResults[] = {{"out", "x"}, {"w2_out", "residual"}};
  static constexpr auto& kOptions = kFusedOptions;
""",
        """      {"expert_outputs", Role::experts, Passing::keyword},
  };
  static constexpr int kSums = 2;
  static constexpr ResultSpec kResults[] = {{"out", "x"}, {"w2_out", "residual"}};
  static constexpr Option kOptions[] = {kGroupSize};
""",
        "experts are not next to one another in groups",
    ),
    "too many tensors": (
        '      {"scale", ',
        '      {"y", Role::input},\n' * 5 + '      {"scale", ',
        "kMaxTensors",
    ),
}


def compile_op(source: str) -> str:
    """What the compiler says."""
    command = [*os.environ.get("CXX", "c++").split(), "-std=c++20", "-fsyntax-only", f"-I{ROOT}"]
    run = subprocess.run([*command, "-xc++", "-"], input=source, capture_output=True, text=True)
    assert (run.returncode == 0) == (not run.stderr), run.stderr
    return run.stderr


def test_a_value_without_bits_does_not_compile() -> None:
    """Nor a choice whose name is missing."""
    text = (ROOT / "csrc/ops/options.h").read_text()
    options = text.replace('#include "../types.h"', '#include "csrc/types.h"')
    options = options.replace("#pragma once", "")
    assert options != text and not compile_op(options)
    for old, new in (
        ('"gelu_tanh", "sigmoid"}', '"gelu_tanh", "sigmoid", "tanh"}'),
        ('    {"round_intermediates"},\n', ""),
    ):
        assert options.count(old) == 1
        assert "static assertion failed" in compile_op(options.replace(old, new))


@pytest.fixture(scope="module")
def messages() -> dict[str, str]:
    for old, _, _ in MISTAKES.values():
        assert OP.count(old) == 1, old
    sources = {what: OP.replace(old, new) for what, (old, new, _) in MISTAKES.items()}
    with ThreadPoolExecutor() as pool:
        return dict(zip(sources, pool.map(compile_op, sources.values()), strict=True))


def test_what_fits_compiles() -> None:
    assert not compile_op(OP)


@pytest.mark.parametrize("what", MISTAKES)
def test_what_does_not_fit_does_not_compile(what: str, messages: dict[str, str]) -> None:
    assert MISTAKES[what][2] in messages[what]
