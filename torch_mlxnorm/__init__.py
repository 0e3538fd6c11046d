"""Fused RMS-norm kernels for PyTorch on Apple silicon (MPS) and CPU.

Importing the package registers the operators ``torch.ops.mlxnorm.*``; the functions here are
their typed, documented front.
"""

import importlib
from typing import TYPE_CHECKING, Any

from torch_mlxnorm import _extension, _registrations  # noqa: F401  (registers the operators)
from torch_mlxnorm._version import __version__
from torch_mlxnorm.functional import (
    Activation,
    CastingMode,
    ChannelForm,
    GateActivation,
    Modulation,
    RopeRounding,
    add_rms_norm,
    channel_rms_norm,
    fused_moe_wsum_post_ff_norm2_endlayer,
    fused_post_attn_triple_norm,
    fused_post_ff_norm2_endlayer,
    gated_rms_norm,
    qk_norm_rope,
    qkv_norm_rope,
    rms_norm,
    rms_norm_add,
    rms_norm_add_rms_norm,
    rms_norm_modulate,
    rms_norm_mul,
    rms_norm_rope,
    rms_norm_triple,
)
from torch_mlxnorm.modules import ChannelRMSNorm, RMSNorm
from torch_mlxnorm.record import Chain, Record, RmsNormRecord, prebake, prebake_chain

if TYPE_CHECKING:
    from torch_mlxnorm.pipelines import CompiledKernel, compiled_kernels, warm_up

__all__ = [
    "Activation",
    "CastingMode",
    "Chain",
    "ChannelForm",
    "ChannelRMSNorm",
    "CompiledKernel",
    "GateActivation",
    "Modulation",
    "RMSNorm",
    "Record",
    "RmsNormRecord",
    "RopeRounding",
    "__version__",
    "add_rms_norm",
    "channel_rms_norm",
    "compiled_kernels",
    "fused_moe_wsum_post_ff_norm2_endlayer",
    "fused_post_attn_triple_norm",
    "fused_post_ff_norm2_endlayer",
    "gated_rms_norm",
    "prebake",
    "prebake_chain",
    "qk_norm_rope",
    "qkv_norm_rope",
    "rms_norm",
    "rms_norm_add",
    "rms_norm_add_rms_norm",
    "rms_norm_modulate",
    "rms_norm_mul",
    "rms_norm_rope",
    "rms_norm_triple",
    "warm_up",
]


_PIPELINES = ("CompiledKernel", "compiled_kernels", "warm_up")


def __getattr__(name: str) -> Any:
    """What is imported when it is used: ``torch_mlxnorm.compile``, which needs Dynamo and Inductor,
    and what servers call before the first request."""
    if name == "compile":
        return importlib.import_module("torch_mlxnorm.compile")
    if name in _PIPELINES:
        return getattr(importlib.import_module("torch_mlxnorm.pipelines"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
