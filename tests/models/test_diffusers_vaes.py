"""torch_mlxnorm.integrations.diffusers on small VAEs of random weights: norms over channels."""

from __future__ import annotations

import copy

import pytest
import torch
from tensors import DTYPES, type_id
from torch import Tensor, nn

pytest.importorskip("diffusers", reason="pip install diffusers")

from tiny_image_models import VAES  # noqa: E402

from torch_mlxnorm.bench.image_models import MODELS as PUBLISHED  # noqa: E402
from torch_mlxnorm.count import bytes_of_step  # noqa: E402
from torch_mlxnorm.integrations._norms import Norms  # noqa: E402
from torch_mlxnorm.integrations.diffusers import accelerate  # noqa: E402

# Whether the blocks of the decoder run as graphs, where silu becomes part of the norm: those of
# the others keep frames in a list that is given to them.
RUN_AS_GRAPHS = ("LTX VAE", "HunyuanVideo 1.5 VAE")


def made(name: str, dtype: torch.dtype) -> nn.Module:
    torch._dynamo.reset()
    return VAES[name].make(dtype, "cpu")


def bound(dtype: torch.dtype) -> float:
    """A few roundings beside the largest element: each norm may differ by one."""
    return 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@pytest.mark.parametrize("name", VAES)
def test_decode(name: str, dtype: torch.dtype) -> None:
    """Twice, because the first time compares what is compiled with the model's own code."""
    model, decoded = made(name, dtype), VAES[name].step
    expected = decoded(model)
    report = accelerate(model)
    for _ in range(2):
        result = decoded(model)
        assert (result - expected).abs().max() <= bound(dtype) * expected.abs().max()
    norms = [entry for entry in report.entries if "norm" in entry.path.rpartition(".")[2]]
    assert len(norms) > 10 and all(entry.op for entry in norms), str(report)
    blocks = {entry.op for entry in report.entries if entry.path.startswith("decoder.up_blocks.0")}
    assert ("channel_rms_norm" in blocks) == (name in RUN_AS_GRAPHS), str(report)
    report.restore()
    assert torch.equal(decoded(model), expected)


@pytest.mark.parametrize("name", ["Wan 2.1 VAE", "LTX VAE"])
def test_norms(device: str, name: str) -> None:
    model = made(name, torch.bfloat16)
    ours = copy.deepcopy(model).to(device)
    replaced = {entry.path for entry in Norms(ours).replace() if entry.op}
    assert len(replaced) > 10
    for path in replaced:
        norm, fused = model.get_submodule(path), ours.get_submodule(path)
        gamma = next(norm.parameters(), None)
        channels = 8 if gamma is None else gamma.numel()
        spatial = [9, 10, 12] if gamma is None else [9, 10, 12][: gamma.dim() - 1]
        x = torch.randn(2, channels, *spatial).bfloat16()
        if gamma is None:  # of LTX, whose channels are moved last for it
            x = x.movedim(1, -1)
        result, expected = fused(x.to(device)), norm(x)
        assert (result.cpu() == expected).float().mean() >= 0.999
        assert result.stride() == x.stride()


@pytest.mark.parametrize(("name", "times"), [("Qwen-Image VAE", 4.0), ("LTX VAE", 2.9)])
def test_bytes_of_a_published_model(name: str, times: float) -> None:
    """Without its data, at full size."""
    torch._dynamo.reset()
    model = PUBLISHED[name].make(torch.bfloat16, "meta")
    counted = bytes_of_step(model, lambda: PUBLISHED[name].step(model))
    before, after = (sum(kernels.values()) for kernels in (counted.before, counted.after))
    assert before > times * after > 0


class OverChannels(nn.Module):
    """As PerChannelRMSNorm of LTX 2; or with a weight for the channels, moved last or not."""

    def __init__(self, weight: Tensor | None = None, move: bool = False) -> None:
        super().__init__()
        self.eps, self.move = 1e-6, move
        self.weight = None if weight is None else nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.move:
            return nn.functional.rms_norm(x.movedim(1, -1), self.weight.shape, self.weight, 1e-6)
        x = x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + self.eps)
        return x if self.weight is None else x * self.weight


class Model(nn.Module):
    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix, self.norm = nn.Linear(2, 2, dtype=dtype), norm.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_what_normalizes_channels_without_saying_so(dtype: torch.dtype) -> None:
    model = Model(OverChannels(), dtype)
    (entry,) = Norms(model).replace()
    assert entry.op == "channel_rms_norm(form='rms_steps')"
    x = torch.randn(2, 5, 6, 7).to(dtype)
    torch.testing.assert_close(model.norm(x), OverChannels()(x))


def test_a_weight_of_channels_that_are_moved_is_left_alone() -> None:
    """It tells what is normalized only if it has the shape of channels, or is of the last."""
    model = Model(OverChannels(torch.randn(8), move=True), torch.float32)
    assert not any(entry.op for entry in Norms(model).replace())


def test_other_dimensions_than_those_of_the_weight() -> None:
    """The module's own code runs, whatever it makes of them."""
    model = Model(OverChannels(torch.randn(4, 1, 1)), torch.float32)
    own = copy.deepcopy(model.norm)
    (entry,) = Norms(model).replace()
    assert entry.op == "channel_rms_norm(form='rms_steps')"
    for shape in ((2, 4, 4, 3), (2, 4, 4, 4, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(model.norm(x), own(x))
