"""Run by test_subclasses.py: every op on DTensors of two processes."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2


def run(rank: int, first: str, ops: list[str], store: str) -> None:
    importlib.import_module(first)
    from ops import OPS, Call, Op, assert_all_same_bits
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor._op_schema import OpSchema

    import torch_mlxnorm

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    shards_keywords = hasattr(OpSchema, "kwargs_strategy")  # PyTorch 2.8 does not

    def keywords(op: Op) -> list[str]:
        return [tensor.name for tensor in op.tensors.values() if tensor.keyword]

    def distributed(call: Call, placement: Replicate | Shard) -> Call:
        def place(name: str) -> torch.Tensor:
            tensor, own = call[name], placement
            if name in (*call.broadcasting, *call.op.named("per_channel")):
                leading = tensor.dim() - 1
                aligned = Shard(placement.dim - 2 + leading) if placement.is_shard() else placement
                # Of keyword arguments PyTorch gathers no dimension.
                whole = leading if name in keywords(call.op) else tensor.dim()
                one_for_all = placement.is_shard() and (
                    not 0 <= aligned.dim < whole or tensor.shape[aligned.dim] == 1
                )
                own = Replicate() if one_for_all else aligned
            return distribute_tensor(tensor, mesh, [own])

        present = [name for name, tensor in call.tensors.items() if tensor is not None]
        return call.having(**{name: place(name) for name in present})

    def assert_right(call: Call, placement: Replicate | Shard, expected: object) -> None:
        if not shards_keywords and keywords(call.op):
            try:
                distributed(call, placement)()
            except NotImplementedError as error:
                assert "which shards positional arguments only" in str(error), error
            else:
                raise AssertionError("a keyword argument was sharded after all")
            call = call.having(**dict.fromkeys(keywords(call.op)))
        spread = distributed(call, placement)
        results = spread()
        assert all(r.placements == (expected,) for r in results), (call.op.name, placement)
        assert_all_same_bits([r.full_tensor() for r in results], call())
        outs = [torch.zeros_like(r) for r in results]
        assert all(a is b for a, b in zip(spread(out=outs), outs, strict=True))
        assert_all_same_bits([out.full_tensor() for out in outs], call())

    for op in (OPS[name] for name in ops):
        for scale in op.scale_kinds:
            groups = {"group_size": 8} if op.gates else {}
            call = op.call((4, 6), 16, torch.bfloat16, scale=scale, **groups)
            for placement in (Replicate(), Shard(0), Shard(1)):
                assert_right(call, placement, placement)
        operands = op.broadcasting
        for leading in ((6,), (1, 6), (4, 1)):
            shapes = {name: (*leading, op.columns(name, 16)) for name in operands}
            call = op.call((4, 6), 16, shapes=shapes)
            for placement in (Shard(0), Shard(1)):
                assert_right(call, placement, placement)
        # dim is gathered first, where every tensor has it as its third dimension
        whole = op.call((4, 6), 16, scale=op.scale_kinds[0])
        if set(whole.rowwise) == set(op.inputs):
            assert_right(whole, Shard(2), Replicate())
        if not shards_keywords:
            whole = whole.having(**dict.fromkeys(keywords(op)))
        wrong = distributed(whole, Shard(0)).having(
            **{op.weights[0]: distribute_tensor(torch.ones(15), mesh, [Replicate()])}
        )
        for outs in (None, [torch.zeros_like(r) for r in distributed(whole, Shard(0))()]):
            try:
                wrong(out=outs)
            except RuntimeError as error:
                size = "shape [16]" if op.has_channels else "a last dimension of 16"
                assert f"must have {size}" in str(error), error
            else:
                raise AssertionError("a weight of another size was taken")
        if op.has_channels:
            each = call.with_channels_apart().mapped(
                lambda t: t.expand(4, 16)[..., None], ["gamma"]
            )
            expected = each()
            for placement in (Shard(0), Shard(2), Shard(1)):  # of [N, C, …]
                x = distribute_tensor(each.given()["x"], mesh, [placement])
                gamma, bias = each["gamma"], each["bias"]
                own = Shard(0) if placement == Shard(0) else Replicate()
                result = torch_mlxnorm.channel_rms_norm(
                    x,
                    distribute_tensor(gamma, mesh, [own]),
                    distribute_tensor(bias, mesh, [Replicate()]),
                    **each.options,
                )
                gathered = Replicate() if placement == Shard(1) else placement
                assert result.placements == (gathered,)
                assert_all_same_bits(each.rows_of((result.full_tensor(),)), expected)
    if rank == 0:
        print(f"{RANKS} ranks: {len(ops)} ops are right")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (sys.argv[1], sys.argv[2:], f"{folder}/store"), nprocs=RANKS)
