"""torch.library's own checks, and torch.compile."""

from __future__ import annotations

import pytest
import torch
from ops import OPS, Op, assert_all_same_bits, broadcast, each_op, each_op_that
from oracle import assert_same_bits
from tensors import randn, type_id
from test_layouts import in_layout
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import torch_mlxnorm

# Of a fake result the strides must be those of the real one, whatever the input's are.
OPCHECK_LAYOUTS = {
    "contiguous": torch.float32,
    "transposed heads": torch.bfloat16,
    "last dim strided": torch.float32,
}
MORE_LAYOUTS = {
    "slice of a fused projection": torch.bfloat16,
    "every other element": torch.float32,
    "expanded": torch.bfloat16,
}
OPCHECKS = [(op, layout, dtype) for op in OPS.values() for layout, dtype in OPCHECK_LAYOUTS.items()]
OPCHECKS += [(OPS["rms_norm"], layout, dtype) for layout, dtype in MORE_LAYOUTS.items()]


@pytest.mark.parametrize(
    ("op", "layout", "dtype"), OPCHECKS, ids=lambda v: v.name if isinstance(v, Op) else type_id(v)
)
def test_opcheck(device: str, op: Op, layout: str, dtype: torch.dtype) -> None:
    arguments, options = in_layout(op, layout, dtype, device).arguments()
    torch.library.opcheck(op.packet.default, arguments, options)


@each_op
def test_opcheck_of_options(device: str, op: Op) -> None:
    options = {"casting_mode": "llama", "weight_offset": 1.0}
    options |= {"round_intermediates": True} if op.rounds else {}
    options |= {"activation": "sigmoid"} if op.activates else {}
    options |= {"norm_before_gate": True, "group_size": 16} if op.gates else {}
    call = op.call((2, 3), 48, torch.float16, device, missing=op.optional, scale="one", **options)
    positional, keyword = call.arguments()
    torch.library.opcheck(op.packet.default, (*positional, 1e-5), keyword)


@each_op
def test_opcheck_of_out(device: str, op: Op) -> None:
    call = in_layout(op, "transposed heads", torch.bfloat16, device)
    positional, keyword = call.arguments()
    outs = call.given_outs(call.empty_outs())
    torch.library.opcheck(op.packet.out, positional, keyword | outs)


@each_op
def test_opcheck_with_gradients(device: str, op: Op) -> None:
    """aot_dispatch_dynamic would call the backward that there is not; PyTorch has written
    autograd_registration for CPU, CUDA and XPU only."""
    call = in_layout(op, "contiguous", torch.float32, device)
    call = call.mapped(lambda t: t.detach().requires_grad_(), [op.first])
    checks = ["test_schema", "test_faketensor"]
    checks += ["test_autograd_registration"] if device == "cpu" else []
    positional, keyword = call.arguments()
    torch.library.opcheck(op.packet.default, positional, keyword, test_utils=checks)


# ---- torch.compile ------------------------------------------------------------------------------


@pytest.fixture
def backend(device: str) -> str:
    """Inductor writes no code for the simulated device; there its passes run without it."""
    return "inductor" if device == "cpu" else "aot_eager"


@torch.no_grad()
def test_compile_equals_eager(device: str, backend: str) -> None:
    def model(x: Tensor, weight: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        heads = x.view(x.shape[0], -1, 4, 16).transpose(1, 2)
        y = torch.ops.mlxnorm.rms_norm(heads, None, 1e-5)
        torch_mlxnorm.rms_norm(x, weight, weight_offset=1.0, out=out)
        return y + 1, out * 2

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for rows in (3, 7, 12):
        x = randn(rows, 128, device=device, seed=rows)
        weight = randn(128, device=device)
        eager_out, compiled_out = torch.empty_like(x), torch.empty_like(x)
        eager = model(x, weight, eager_out)
        for a, b in zip(compiled(x, weight, compiled_out), eager, strict=True):
            assert_same_bits(a, b)
        assert_same_bits(compiled_out, eager_out)


@torch.no_grad()
def test_compile_of_the_family_equals_eager(device: str, backend: str) -> None:
    """A model that calls every op, the functions and `out`, of tensors in other layouts."""
    dim, top_k = 64, 3

    def model(h: Tensor, experts: Tensor, routing: Tensor, w: Tensor, s: Tensor) -> list[Tensor]:
        m, rounded = torch_mlxnorm, {"round_intermediates": True}
        x = h.view(h.shape[0], dim, 2).transpose(1, 2)[:, 0]
        y = m.rms_norm_mul(x, w, h[:, :dim], activation="silu")
        a, b, c = m.rms_norm_triple(y + x, w, None, w.float(), casting_mode="llama")
        d, r = m.add_rms_norm(a, b * 2, w, **rounded)
        e = m.rms_norm_add(d, r, None, scale=s)
        f, g = m.rms_norm_add_rms_norm(c, e, w, None, scale=w, weight_offset=1.0)
        p = m.fused_post_attn_triple_norm(f, g, w, w, None, w, **rounded)
        q = m.fused_post_ff_norm2_endlayer(p[0], p[1], p[2], w, w, s)
        out = (torch.empty_like(p[3]), torch.empty_like(p[3]))
        m.fused_moe_wsum_post_ff_norm2_endlayer(
            experts.transpose(0, 1), routing, q[0], q[1], w, w, s, out=out
        )
        m.add_rms_norm(out[0], out[1], w, out=(out[1], out[0]))
        return [y, a, b, c, d, e, f, g, *p, *q, *out]

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for rows in (3, 8):
        arguments = [
            randn(*shape, dtype=torch.bfloat16, device=device, seed=i)
            for i, shape in enumerate(
                [(rows, 2 * dim), (top_k, rows, dim), (rows, top_k), (dim,), (1,)]
            )
        ]
        for a, b in zip(compiled(*arguments), model(*arguments), strict=True):
            assert_same_bits(a, b)


@each_op
@torch.no_grad()
def test_every_op_compiles(device: str, op: Op) -> None:
    """Its function, with fresh results and with `out`."""
    torch._dynamo.reset()
    function = getattr(torch_mlxnorm, op.name)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (2, 5):
        call = op.call((rows,), 48, torch.bfloat16, device)
        arguments = call.given() | call.options
        results, outs = compiled(**arguments), call.empty_outs()
        results = (results,) if isinstance(results, Tensor) else results
        assert_all_same_bits(results, call())
        compiled(**arguments, out=outs if len(outs) > 1 else outs[0])
        assert_all_same_bits(outs, call())


CHECKED = [op for op in OPS.values() if "weight" in op.tensors or "w2" in op.tensors]


@pytest.mark.parametrize("op", CHECKED, ids=lambda op: op.name)
@torch.no_grad()
def test_compile_checks_arguments(device: str, op: Op) -> None:
    torch._dynamo.reset()
    call = op.call((2,), 8, torch.float32, device)
    name = op.named("weight")[0]
    wrong = call.having(**{name: torch.ones(9, device=device)})
    function = getattr(torch_mlxnorm, op.name)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    with pytest.raises(Exception, match=f"{name} must have a last dimension of"):
        compiled(**wrong.tensors)


@each_op_that(lambda op: op.named("scale"))
@torch.no_grad()
def test_what_a_scale_is_does_not_depend_on_sizes(op: Op) -> None:
    """Compiled once for each kind of scale, whatever rows and dim; also where they are equal."""
    name = op.named("scale")[0]
    kinds = {"one": [(), (1, 1)], "dim": [(-1,), (1, -1)], "column": [(-1, 1)]}
    for kind, shapes in kinds.items():
        for shape in shapes:
            torch._dynamo.reset()
            counter = CompileCounter()
            function = getattr(torch_mlxnorm, op.name)
            compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
            for rows, dim in [(4, 8), (5, 16), (16, 16)]:
                call = op.call((rows,), dim, scale="one" if kind == "one" else "dim")
                call = call.mapped(lambda t, shape=shape: t.view(shape), [name])
                if kind == "column":
                    with pytest.raises(Exception, match=f"{name} must have 1 element, or"):
                        compiled(**call.tensors)
                else:
                    results = compiled(**call.tensors)
                    results = (results,) if isinstance(results, Tensor) else results
                    assert_all_same_bits(results, call())
            assert counter.frame_count == (0 if kind == "column" else 1)


@each_op
@torch.no_grad()
def test_what_is_broadcast_is_compiled_once(op: Op) -> None:
    """Whatever the sizes, for each choice of dimensions that are one for all."""
    names = op.broadcasting_rows
    for kept in [(True, False), (False, True), (True, True)]:
        torch._dynamo.reset()
        counter = CompileCounter()
        function = getattr(torch_mlxnorm, op.name)
        compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
        for batch, tokens, dim in [(2, 5, 8), (5, 6, 16), (7, 9, 10)]:  # top_k is 3, pairs 4
            shapes = dict.fromkeys(names, broadcast((batch, tokens), dim, kept))
            call = op.call((batch, tokens), dim, shapes=shapes)
            results = compiled(**call.given(), **call.options)
            results = (results,) if isinstance(results, Tensor) else results
            assert_all_same_bits(call.rows_of(results), call())
        assert counter.frame_count == 1
