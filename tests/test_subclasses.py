"""Tensor subclasses of PyTorch: jagged nested tensors, DTensor."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from beside import beside, run
from ops import OPS, Call, Op, assert_all_same_bits, each_op, each_op_that, function_of
from torch import Tensor

LENGTHS = (3, 1, 4)


def jagged(values: Tensor, offsets: Tensor) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(values, offsets, min_seqlen=1, max_seqlen=4)


def nested(call: Call, offsets: Tensor | None = None) -> Call:
    """The rows of the call, in sequences of LENGTHS."""
    if offsets is None:
        ends = torch.tensor([0, *LENGTHS], device=call[call.op.first].device)
        offsets = ends.cumsum(0)
    return call.mapped(lambda t: jagged(t, offsets), call.rowwise)


@each_op
def test_jagged_tensors_run_on_their_values(device: str, op: Op) -> None:
    for scale in op.scale_kinds:
        call = op.call((sum(LENGTHS),), 24, torch.bfloat16, device, scale=scale)
        ragged = nested(call)
        expected = call()
        results = ragged()
        assert_all_same_bits([r.values() for r in results], expected)
        ones = ragged.mapped(lambda t: t.view(1, 1, -1), op.named("weight"))
        assert_all_same_bits([r.values() for r in ones()], expected)
        like = ragged[op.inputs[-1]]
        assert all(r.is_nested and r.shape == like.shape for r in results)
        total = results[0] + like  # as ragged as the input
        assert torch.equal(total.values(), expected[0] + like.values())

        outs = [torch.zeros_like(like) for _ in results]
        assert all(a is b for a, b in zip(ragged(out=outs), outs, strict=True))
        assert_all_same_bits([out.values() for out in outs], expected)


@each_op_that(lambda op: op.residuals)
def test_jagged_tensors_with_a_float32_residual(device: str, op: Op) -> None:
    call = op.call((sum(LENGTHS),), 24, torch.bfloat16, device).with_wide_residual()
    assert_all_same_bits([result.values() for result in nested(call)()], call())


@each_op
def test_jagged_tensors_compile(op: Op) -> None:
    call = op.call((sum(LENGTHS),), 24)
    ragged = nested(call)

    function = function_of(call)

    def model(tensors: dict[str, Tensor | None]) -> list[Tensor]:
        return [result * 2 for result in function(tensors)]

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = [result.values() for result in compiled(ragged.tensors)]
    assert_all_same_bits(results, model(call.tensors))


@each_op_that(lambda op: not op.named("experts"))
def test_jagged_tensors_with_heads(op: Op) -> None:
    """[batch, heads, ragged, dim]: the values are transposed."""
    call = op.call((sum(LENGTHS), 2), 24)
    turned = nested(call).mapped(lambda t: t.transpose(1, 2), call.rowwise)
    results = [r.transpose(1, 2).values() for r in turned()]
    assert_all_same_bits(results, call())


@each_op_that(lambda op: not op.named("experts"))
def test_jagged_tensors_with_operands_for_each_head(op: Op) -> None:
    names = op.broadcasting_rows
    call = op.call((sum(LENGTHS), 2), 24, shapes=dict.fromkeys(names, (2, 24)))
    expected = call()
    assert_all_same_bits([r.values() for r in nested(call)()], expected)
    whole = nested(call).mapped(lambda t: t.view(1, 1, 1, 2, 24), names)
    assert_all_same_bits([r.values() for r in whole()], expected)
    turned = nested(call).mapped(lambda t: t.transpose(1, 2), call.rowwise)
    turned = turned.mapped(lambda t: t.view(2, 1, 24), names)
    assert_all_same_bits([r.transpose(1, 2).values() for r in turned()], expected)


def refused(call: Call, text: str) -> None:
    with pytest.raises(RuntimeError, match=f"mlxnorm::{call.op.name}: {text}"):
        call()


@each_op
def test_jagged_tensors_beside_others(op: Op) -> None:
    call = op.call((sum(LENGTHS),), 24)
    ragged = nested(call)
    for name in op.broadcasting_rows:
        for shape in ((len(LENGTHS), 1, 24), (sum(LENGTHS), 24)):
            dense = ragged.having(**{name: torch.ones(shape)})
            refused(dense, f"{name} must be nested, as {op.first} is, or one for all of the ragged")
    for name in op.inputs:
        others = [n for n in call.rowwise if n != name]
        if not others:
            continue
        refused(ragged.having(**{name: call[name]}), f"{name} must be nested")
        elsewhere = torch.tensor([0, 2, 4, sum(LENGTHS)])
        if name != op.first:
            other = nested(call, elsewhere)[name]
            refused(ragged.having(**{name: other}), f"{name} must be as ragged as {op.first}")


@each_op
def test_ragged_last_dimension(op: Op) -> None:
    call = op.call((sum(LENGTHS),), 24)
    turned = nested(call).mapped(lambda t: t.transpose(1, -1), call.rowwise)
    where = "dimension 1" if op.has_channels else "its last dimension"
    refused(turned, f"{op.first} must not be ragged in {where}")


@each_op_that(lambda op: op.name in ("rms_norm", "add_rms_norm"))
def test_jagged_tensors_and_gradients(op: Op) -> None:
    ragged = nested(op.call((sum(LENGTHS),), 24)).mapped(lambda t: t.requires_grad_())
    with pytest.raises(NotImplementedError, match="inference only"):
        ragged()[0].values().sum().backward()


# ---- DTensor -------------------------------------------------------------------------------------


# What is imported first, and the ops.
IMPORTS = {"torch_mlxnorm": list(OPS), "torch.distributed.tensor": ["rms_norm"]}


@beside
def of_ranks() -> dict[str, CompletedProcess[str]]:
    if not torch.distributed.is_available():
        return {}
    script = Path(__file__).with_name("dtensor_ranks.py")
    return {
        first: run([sys.executable, script, first, *ops], timeout=300)
        for first, ops in IMPORTS.items()
    }


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
@pytest.mark.parametrize("first", IMPORTS)
def test_dtensor(first: str, of_ranks: dict[str, CompletedProcess[str]]) -> None:
    """Two processes, in either order of the imports."""
    done = of_ranks[first]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"2 ranks: {len(IMPORTS[first])} ops are right" in done.stdout


@beside
def imported_alone() -> CompletedProcess[str]:
    code = "import sys, torch_mlxnorm; assert 'torch.distributed.tensor' not in sys.modules"
    return run([sys.executable, "-c", code])


def test_import_leaves_distributed_tensors_alone(
    imported_alone: CompletedProcess[str],
) -> None:
    assert imported_alone.returncode == 0, imported_alone.stderr
