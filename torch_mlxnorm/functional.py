"""The operators as typed Python functions.

The formulas are written with::

    N(x, weight) = x * rsqrt(mean(x**2) + eps) * (weight + weight_offset)    # over the last dim
    R(x)         = x rounded to the dtype of the inputs if round_intermediates, else x

:func:`torch_mlxnorm.rms_norm` describes tensors, ``eps``, ``weight_offset``, ``casting_mode``,
``out`` and errors for all of them. Beyond that, the other operators have in common:

- **Inputs**, the tensors ``[..., dim]``, have one shape, dtype and device; none is
  broadcast. Each has strides of its own. Results have their shape and dtype, and
  are rounded once, when they are written; everything before is float32.
  :func:`torch_mlxnorm.channel_rms_norm` has rules of its own.
- **residual** may be float32 beside 16-bit inputs. Then the sum is not rounded, a norm reads it as
  it is, and the result that is the residual stream is float32 as well.
- **Weights** and a ``bias`` are ``[dim]``, or of a shape that ends in dim and broadcasts to the
  results', such as ``[heads, dim]``. They, ``scale``, ``layer_scalar``, ``routing_weights``,
  ``cos`` and ``sin`` are, each for itself, float32, float16 or bfloat16, whatever the inputs are,
  whose dtype the results keep. ``weight_offset`` is added to every weight, ``casting_mode`` holds
  inside every ``N``.
- **scale, shift, layer_scalar and the gate of a residual** are that, or have one element in any
  shape. ``[rows, 1]`` is an error: nothing is broadcast along a row.
- **round_intermediates** ``False`` keeps float32 between the steps, which is more accurate: a
  second norm sees the unrounded sum, although the sum that is returned is rounded. ``True`` rounds
  wherever the formula says ``R``: in float16 and bfloat16 the results equal, bit for bit, the chain
  of :func:`torch_mlxnorm.rms_norm` and PyTorch's ``+`` and ``*``.
- **out** is a tuple of tensors, in the order of the results, where there are several, and is
  returned as it is. Its rows may lie anywhere, if they have stride 1, no two elements share an
  address and the leading dimensions fold into at most three. Each may be one of the inputs itself,
  with the same strides, as in ``add_rms_norm(x, residual, weight, out=(x, residual))``. None may
  overlap another ``out``, nor an operand or ``expert_outputs``.
- **Errors**, besides those of :func:`torch_mlxnorm.rms_norm`: ``TypeError`` when ``out`` is not a
  tuple of as many tensors as there are results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from torch_mlxnorm import _C
from torch_mlxnorm._roles import LIKES

Activation = Literal["none", "silu", "gelu_tanh", "sigmoid"]
CastingMode = Literal["gemma", "llama"]
Modulation = Literal["steps", "addcmul", "once"]
RopeRounding = Literal["once", "products", "addcmul"]
GateActivation = Literal["none", "tanh", "sigmoid"]
ChannelForm = Literal["normalize", "normalize_float32", "rms", "rms_steps"]


# False but for Dynamo, which cannot look into C++ and is given the operator in Python.
_is_traced = torch.compiler.is_dynamo_compiling


def _bind(name: str) -> Callable[..., Any]:
    """An operator as ``run(*arguments, out)``, of all arguments in the order of its schema."""
    arguments = torch._C._get_schema(f"mlxnorm::{name}", "").arguments
    positional = sum(not argument.kwarg_only for argument in arguments)
    keywords = [(a.name, a.default_value) for a in arguments if a.kwarg_only]
    ops, results = torch.ops.mlxnorm, list(LIKES[name])
    count = len(results)

    def run_in_python(*given: Any) -> Any:
        """By ``torch.ops``, for whoever wants to see that, without what is left at its default."""
        out = given[-1]
        packet = getattr(ops, name)  # which PyTorch makes, and keeps, when it is first asked for
        options = {
            key: value
            for (key, default), value in zip(keywords, given[positional:-1], strict=True)
            if (value is not None if default is None else value != default)
        }
        if out is None:
            return packet.default(*given[:positional], **options)
        if count == 1:
            options["out"] = out
        elif isinstance(out, (tuple, list)) and len(out) == count:
            for i in range(count):
                options[results[i]] = out[i]
        else:
            got = type(out).__name__
            if isinstance(out, (tuple, list)):
                got += f" of {len(out)}"
            raise TypeError(
                f"mlxnorm::{name}: out must be a tuple of {count} tensors "
                f"({', '.join(results)}), got {got}"
            )
        packet.out(*given[:positional], **options)
        return out

    run_in_cpp = _C.function(name, run_in_python)

    def run(*given: Any) -> Any:
        return run_in_python(*given) if _is_traced() else run_in_cpp(*given)

    return run


_rms_norm = _bind("rms_norm")
_rms_norm_mul = _bind("rms_norm_mul")
_rms_norm_modulate = _bind("rms_norm_modulate")
_gated_rms_norm = _bind("gated_rms_norm")
_channel_rms_norm = _bind("channel_rms_norm")
_rms_norm_rope = _bind("rms_norm_rope")
_qk_norm_rope = _bind("qk_norm_rope")
_qkv_norm_rope = _bind("qkv_norm_rope")
_rms_norm_triple = _bind("rms_norm_triple")
_add_rms_norm = _bind("add_rms_norm")
_rms_norm_add = _bind("rms_norm_add")
_rms_norm_add_rms_norm = _bind("rms_norm_add_rms_norm")
_fused_post_attn_triple_norm = _bind("fused_post_attn_triple_norm")
_fused_post_ff_norm2_endlayer = _bind("fused_post_ff_norm2_endlayer")
_fused_moe_wsum_post_ff_norm2_endlayer = _bind("fused_moe_wsum_post_ff_norm2_endlayer")


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float | None = 1e-6,
    *,
    bias: Tensor | None = None,
    activation: Activation = "none",
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    out: Tensor | None = None,
) -> Tensor:
    """Root-mean-square normalization over the last dimension::

        N(x, weight) = x * rsqrt(mean(x**2) + eps) * (weight + weight_offset)
        out = activation(N(x, weight) + bias)

    The sum of squares and everything after it is computed in float32, in an order that depends on
    device, dim and dtype alone: a row gives the same bits alone or in a batch.

    Args:
        x: ``[..., dim]``, float32, float16 or bfloat16, ``dim`` at least 1. Any strides: rows
            whose last dimension has stride 1 are read where they are when the leading dimensions
            fold into at most three, other layouts are made contiguous first.
        weight: ``[dim]``, or any shape that ends in dim and broadcasts to x's: ``[heads, dim]``.
            float32, float16 or bfloat16, on x's device. ``None`` means 1, and then
            ``weight_offset`` and ``casting_mode`` have no effect.
        eps: added to the mean of the squares; ``None`` means ``torch.finfo(torch.float32).eps`` for
            every dtype, as in :func:`torch.nn.functional.rms_norm`.
        bias: of a shape and dtype as a weight may have; added in float32. ``None``: nothing.
        activation: of the result before it is rounded, see :func:`rms_norm_mul`.
        weight_offset: added to the weight in float32; 1.0 for checkpoints that store
            ``weight - 1`` (Gemma 1 to 3).
        casting_mode: ``"gemma"`` multiplies by the weight in float32 and rounds once, as
            :func:`torch.nn.functional.rms_norm` does; ``"llama"`` rounds the normalized value to
            x's dtype before it multiplies, as most models of ``transformers`` do. The same in
            float32.
        out: where to write: x's shape, dtype and device; rows of stride 1 that may lie anywhere,
            such as a slot of a cache. It may be x itself.

    Returns:
        A contiguous tensor of x's shape and dtype (``out`` if given). An x without rows gives an
        empty result.

    Raises:
        TypeError: a dtype is not one of the above.
        ValueError: ``casting_mode`` or ``activation`` is unknown.
        RuntimeError: x is 0-dimensional or has an empty last dimension, a shape or device does not
            fit, ``out`` has rows that cannot be written, overlaps what is read, or would lose a
            gradient.
        NotImplementedError: at backward; the op is for inference only.

    NaN and infinities propagate as in :func:`torch.nn.functional.rms_norm`.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019,
    https://arxiv.org/abs/1910.07467; ported from ``dispatch_rms_norm``,
    ``dispatch_rms_norm_no_scale_bf16`` and ``dispatch_rms_norm_no_scale_f32`` of mlx-native 0.9.0,
    ``rms_norm.rs``.

    Example::

        import torch, torch_mlxnorm

        x = torch.randn(8, 2816, dtype=torch.bfloat16)
        weight = torch.ones(2816, dtype=torch.bfloat16)
        y = torch_mlxnorm.rms_norm(x, weight, 1e-6)
        torch_mlxnorm.rms_norm(x, weight, 1e-6, out=x)  # in place
    """
    return _rms_norm(x, weight, eps, bias, activation, weight_offset, casting_mode, out)


def rms_norm_mul(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    eps: float | None = 1e-6,
    *,
    activation: Activation = "none",
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """A norm times a scale or an activated gate::

        out = R(N(x, weight)) * activation(scale)

    With ``round_intermediates`` the activated scale is rounded to scale's own dtype.

    Args:
        x: ``[..., dim]``, float32, float16 or bfloat16.
        weight: ``[dim]`` or ``None``.
        scale: ``[dim]``, what broadcasts to x's shape, or one element.
        activation: of scale. ``"none"``: ``scale``; ``"silu"``: ``scale * sigmoid(scale)``;
            ``"gelu_tanh"``: ``0.5 * scale * (1 + tanh(sqrt(2 / pi) * (scale + 0.044715 *
            scale**3)))``; ``"sigmoid"``.
        eps, weight_offset, casting_mode: see :func:`rms_norm`.
        round_intermediates, out: see :mod:`torch_mlxnorm.functional`.

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: ``activation`` is unknown.
        RuntimeError: scale has another shape.
        Otherwise as :func:`rms_norm`.

    Source: ported from ``dispatch_rms_norm_mul`` of mlx-native 0.9.0, ``rms_norm.rs``, which takes
    a scale of x's shape and dtype. The activations are beyond the source; :func:`gated_rms_norm`
    has those of models, whose gate stays in float32.

    Example::

        import torch, torch_mlxnorm

        x, gate = torch.randn(2, 8, 2816)
        y = torch_mlxnorm.rms_norm_mul(x, torch.ones(2816), gate, activation="silu")
    """
    return _rms_norm_mul(
        x, weight, scale, eps, activation, weight_offset, casting_mode, round_intermediates, out
    )


def rms_norm_modulate(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    shift: Tensor | None = None,
    eps: float | None = 1e-6,
    *,
    scale_offset: float = 1.0,
    modulation: Modulation = "steps",
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """The adaptive norm of diffusion transformers::

        out = N(x, weight) * (scale_offset + scale) + shift

    Args:
        x: ``[..., dim]``, float32, float16 or bfloat16.
        weight: ``[dim]`` or ``None``.
        scale, shift: ``[dim]``, what broadcasts to x's shape, such as ``[batch, 1, dim]``, or one
            element, each of its own dtype. Without ``shift`` nothing is added.
        scale_offset: added to the scale; 0.0 for a scale that has the 1 already.
        modulation: where ``round_intermediates`` rounds, after ``n = R(N(x, weight))``:
            ``"steps"``, ``R(n * (scale_offset + scale)) + shift`` with a sum in scale's own dtype,
            as diffusers has it; ``"addcmul"``, ``R(n + n * scale) + shift``, as
            :func:`torch.addcmul`; ``"once"``, only the result. In float32 alike.
        eps, weight_offset, casting_mode: see :func:`rms_norm`.
        round_intermediates, out: see :mod:`torch_mlxnorm.functional`.

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: ``modulation`` is not one of its names.
        Otherwise as :func:`rms_norm`.

    Source: beyond mlx-native 0.9.0, which has no op like it.

    Example::

        import torch, torch_mlxnorm

        x = torch.randn(2, 256, 3072)  # [batch, tokens, dim]
        scale, shift = torch.randn(2, 2, 1, 3072)  # each [batch, 1, dim]
        y = torch_mlxnorm.rms_norm_modulate(x, None, scale, shift)
    """
    return _rms_norm_modulate(
        x,
        weight,
        scale,
        shift,
        eps,
        scale_offset,
        modulation,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )


def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    eps: float | None = 1e-6,
    *,
    bias: Tensor | None = None,
    norm_before_gate: bool = False,
    group_size: int = 0,
    activation: Activation = "silu",
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """The gated norm of state-space models and linear attention::

        out = N(x * activation(gate), weight) + bias      # Mamba2, Zamba2, Falcon-H1
        out = R(N(x, weight) + bias) * activation(gate)   # norm_before_gate: Qwen3-Next, Kimi

    The activated gate and its product with x stay in float32, also with ``round_intermediates``.

    Args:
        x, gate: ``[..., dim]``, float32, float16 or bfloat16.
        weight: ``[dim]`` or ``None``.
        bias: ``[dim]``, added in float32; ``None``: nothing.
        norm_before_gate: the second formula.
        group_size: a row is cut into parts of so many elements, each of which has a norm of its
            own; 0 means the whole row. Weight and bias are ``[dim]`` all the same.
        activation: of the gate, see :func:`rms_norm_mul`.
        eps, weight_offset, casting_mode: see :func:`rms_norm`.
        round_intermediates, out: see :mod:`torch_mlxnorm.functional`. Groups in an ``out`` count as
            one of the dimensions that fold into at most three.

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: ``activation`` is unknown.
        RuntimeError: ``group_size`` does not divide dim.
        Otherwise as :func:`rms_norm`.

    Source: beyond mlx-native 0.9.0, which has no op like it. The formulas are those of Dao and Gu,
    "Transformers are SSMs", 2024, https://arxiv.org/abs/2405.21060, and of its code.

    Example::

        import torch, torch_mlxnorm

        x, gate = torch.randn(2, 8, 4096)
        y = torch_mlxnorm.gated_rms_norm(x, gate, torch.ones(4096), 1e-5, group_size=512)
    """
    return _gated_rms_norm(
        x,
        gate,
        weight,
        eps,
        bias,
        norm_before_gate,
        group_size,
        activation,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )


def channel_rms_norm(
    x: Tensor,
    gamma: Tensor | None,
    bias: Tensor | None = None,
    eps: float | None = 1e-12,
    *,
    form: ChannelForm = "normalize",
    silu: bool = False,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    out: Tensor | None = None,
) -> Tensor:
    """The norm of video and image VAEs, over dimension 1, with the silu that follows it::

        t = r(r(r(x / max(norm(x), eps)) * sqrt(C)) * (gamma + weight_offset)) + bias
        out = silu(t) if silu else t

    where ``r`` rounds to x's dtype, as every step is rounded that another one follows: the results
    are those of separate operators. Nothing is copied to another memory format.

    Args:
        x: ``[N, C, ...]``, float32, float16 or bfloat16, ``C`` at least 1, in any memory format.
            Contiguous memory, channels-last memory and slices of either are read where they are;
            what neither has channels of stride 1 nor other dimensions that do is copied.
        gamma: ``[C]``, or what broadcasts to ``[N, C, 1, ...]`` and has all channels, such as
            ``[C, 1, 1]``. float32, float16 or bfloat16, on x's device. ``None`` means 1.
        bias: alike. ``None``: nothing is added.
        eps: of ``"normalize"`` forms the least norm that is divided by, of others what is added to
            the mean of the squares; ``None`` means ``torch.finfo(torch.float32).eps``.
        form: what ``t`` is before gamma and bias.

            - ``"normalize"``: ``F.normalize(x, dim=1, eps=eps) * C**0.5``, whose norm is rounded to
              x's dtype, and so is eps unless that makes it 0.
            - ``"normalize_float32"``: ``F.normalize(x.float(), dim=1, eps=eps).to(x.dtype) *
              C**0.5``, as diffusers has it.
            - ``"rms"``: :func:`rms_norm` over dimension 1, gamma being its weight.
            - ``"rms_steps"``: ``x / torch.sqrt(torch.mean(x**2, 1, keepdim=True) + eps)``, every
              step of it rounded, and eps, as above.
        silu: whether ``silu`` is applied to ``t``, in float32 and rounded.
        weight_offset: added to gamma, see :func:`rms_norm`.
        casting_mode: of ``"rms"``, see :func:`rms_norm`.
        out: where to write: x's shape, dtype and device, in any memory format. It may be x itself.

    Returns:
        x's shape and dtype, in its memory format (``out`` if given).

    Raises:
        TypeError: a dtype is not one of the above.
        ValueError: ``form`` or ``casting_mode`` is unknown.
        RuntimeError: x has less than 2 dimensions or no channels, a shape or device does not fit,
            ``out`` has elements that share an address, overlaps what is read, or would lose a
            gradient.
        NotImplementedError: at backward; the op is for inference only.

    Source: beyond mlx-native 0.9.0, which has no op like it: the norms of the VAEs of Wan,
    Qwen-Image, HunyuanVideo 1.5 and LTX.

    Example::

        import torch, torch_mlxnorm

        x = torch.randn(1, 96, 4, 32, 32)  # [N, C, frames, height, width]
        y = torch_mlxnorm.channel_rms_norm(x, torch.ones(96), silu=True)
    """
    return _channel_rms_norm(x, gamma, bias, eps, form, silu, weight_offset, casting_mode, out)


def rms_norm_rope(
    x: Tensor,
    weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float | None = 1e-6,
    *,
    interleaved: bool = False,
    full_tables: bool = False,
    across_heads: bool = False,
    rope_rounding: RopeRounding = "once",
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """The norm of a head, and rotary position embedding::

        y = R(N(x, weight))
        y0, y1 = y[..., :r/2], y[..., r/2:r]    # or neighbours
        out = y0 * cos - y1 * sin, y1 * cos + y0 * sin, y[..., r:]

    in the places of ``y0``, ``y1`` and the rest, which passes through.

    Args:
        x: ``[..., dim]``, float32, float16 or bfloat16: ``[batch, tokens, heads, dim]`` as well as
            ``[batch, heads, tokens, dim]``.
        weight: ``[dim]``, what broadcasts to x's shape, or ``None``.
        cos, sin: ``[..., r/2]``, with leading dimensions that broadcast to x's, such as
            ``[tokens, 1, r/2]`` or ``[batch, 1, tokens, r/2]``, each of its own dtype and strides.
        interleaved: pairs are neighbours, ``y[..., 0:r:2]`` and ``y[..., 1:r:2]``, not an element
            of either half.
        full_tables: cos and sin are ``[..., r]``, an element for each of x's, and those of a pair
            may differ. Tables wider than ``dim/2`` always are; of narrower ones the shape does not
            tell: ``dim/2`` columns rotate all of a row, or half of it with full tables.
        across_heads: the norm is over all of a token's heads, dimensions -2 and -1 of x, with a
            weight of ``[heads * dim]``; each head is rotated by itself.
        rope_rounding: where ``round_intermediates`` rounds, after y: ``"once"``, only the result,
            as code with float32 tables does; ``"products"``, ``R(y0 * cos) - R(y1 * sin)``, as
            transformers does with tables in x's dtype; ``"addcmul"``, ``R(y0 * cos) - y1 * sin``,
            as :func:`torch.addcmul`.
        eps, weight_offset, casting_mode: see :func:`rms_norm`.
        round_intermediates, out: see :mod:`torch_mlxnorm.functional`.

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: ``rope_rounding`` is not one of its names.
        RuntimeError: ``r`` is odd or larger than ``dim``, or not the same in cos and sin.
        Otherwise as :func:`rms_norm`.

    Source: beyond mlx-native 0.9.0, which has no op like it.

    Example::

        import torch, torch_mlxnorm

        angles = torch.outer(torch.arange(16.0), 1e4 ** -torch.linspace(0, 1, 65)[:-1])
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # [tokens, 1, dim / 2]
        x = torch.randn(1, 16, 32, 128)  # [batch, tokens, heads, dim]
        y = torch_mlxnorm.rms_norm_rope(x, torch.ones(128), cos, sin)
    """
    return _rms_norm_rope(
        x,
        weight,
        cos,
        sin,
        eps,
        interleaved,
        full_tables,
        across_heads,
        rope_rounding,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float | None = 1e-6,
    *,
    interleaved: bool = False,
    full_tables: bool = False,
    across_heads: bool = False,
    rope_rounding: RopeRounding = "once",
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`rms_norm_rope` of queries and of keys, in one dispatch::

        q_out = rms_norm_rope(q, q_weight, cos, sin)
        k_out = rms_norm_rope(k, k_weight, cos, sin)

    Args:
        q, k: ``[..., dim]``, of one dtype and alike in shape, but that k may have another number of
            heads (one dimension before the last).
        q_weight, k_weight: as weight in :func:`rms_norm_rope`.
        cos, sin: as there, with leading dimensions that broadcast to those of q and to those of k.
        interleaved, full_tables, across_heads, rope_rounding: see :func:`rms_norm_rope`.
        eps, weight_offset, casting_mode: see :func:`rms_norm`.
        round_intermediates: see :mod:`torch_mlxnorm.functional`.
        out: a tuple of two. Each may be its own input itself, such as a slice of a packed
            projection, and neither may overlap the other's.

    Returns:
        ``(q_out, k_out)``, of the shapes and dtype of q and k.

    Raises:
        RuntimeError: k's shape differs from q's in more than one dimension, or in the last.
        Otherwise as :func:`rms_norm_rope`.

    Source: beyond mlx-native 0.9.0, which has no op like it.

    Example::

        import torch, torch_mlxnorm

        angles = torch.outer(torch.arange(16.0), 1e4 ** -torch.linspace(0, 1, 65)[:-1])
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        q, k = torch.randn(1, 16, 40, 128).split([32, 8], dim=2)  # slices of one projection
        weight = torch.ones(128)
        torch_mlxnorm.qk_norm_rope(q, k, weight, weight, cos, sin, out=(q, k))
    """
    return _qk_norm_rope(
        q,
        k,
        q_weight,
        k_weight,
        cos,
        sin,
        eps,
        interleaved,
        full_tables,
        across_heads,
        rope_rounding,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )


def qkv_norm_rope(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float | None = 1e-6,
    *,
    interleaved: bool = False,
    full_tables: bool = False,
    across_heads: bool = False,
    rope_rounding: RopeRounding = "once",
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`qk_norm_rope`, and the norm of the values, which have no weight and are not rotated,
    in one dispatch::

        q_out = rms_norm_rope(q, q_weight, cos, sin)
        k_out = rms_norm_rope(k, k_weight, cos, sin)
        v_out = N(v, None)

    Args:
        q, k, v: ``[..., dim]``, of one dtype and alike in shape, but that k and v may have another
            number of heads (one dimension before the last).
        q_weight, k_weight, cos, sin: see :func:`qk_norm_rope`.
        interleaved, full_tables, across_heads, rope_rounding: see :func:`rms_norm_rope`.
        eps, weight_offset, casting_mode: see :func:`rms_norm`.
        round_intermediates: see :mod:`torch_mlxnorm.functional`.
        out: a tuple of three, as in :func:`qk_norm_rope`.

    Returns:
        ``(q_out, k_out, v_out)``, of the shapes and dtype of q, k and v.

    Raises:
        As :func:`qk_norm_rope`.

    Source: beyond mlx-native 0.9.0, which has no op like it; it serves Gemma 4.

    Example::

        import torch, torch_mlxnorm

        angles = torch.outer(torch.arange(16.0), 1e4 ** -torch.linspace(0, 1, 65)[:-1])
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        q, k, v = torch.randn(1, 16, 48, 128).split([32, 8, 8], dim=2)
        weight = torch.ones(128)
        torch_mlxnorm.qkv_norm_rope(q, k, v, weight, weight, cos, sin, out=(q, k, v))
    """
    return _qkv_norm_rope(
        q,
        k,
        v,
        q_weight,
        k_weight,
        cos,
        sin,
        eps,
        interleaved,
        full_tables,
        across_heads,
        rope_rounding,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )


def rms_norm_triple(
    x: Tensor,
    weight_a: Tensor | None,
    weight_b: Tensor | None,
    weight_c: Tensor | None,
    eps: float | None = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Three norms of one input, which is read and reduced once::

        out_a = N(x, weight_a)
        out_b = N(x, weight_b)
        out_c = N(x, weight_c)

    Args:
        x: ``[..., dim]``, float32, float16 or bfloat16.
        weight_a, weight_b, weight_c: ``[dim]`` or ``None`` each.
        eps, weight_offset, casting_mode: see :func:`rms_norm`.
        out: see :mod:`torch_mlxnorm.functional`.

    Returns:
        ``(out_a, out_b, out_c)``, each of x's shape and dtype.

    Raises:
        As :func:`rms_norm`.

    Source: ported from ``dispatch_rms_norm_f32_triple`` of mlx-native 0.9.0, ``rms_norm.rs``.

    Example::

        import torch, torch_mlxnorm

        x, (a, b) = torch.randn(8, 2816), torch.ones(2, 2816)
        mlp_in, moe_in, router_in = torch_mlxnorm.rms_norm_triple(x, a, b, None)
    """
    return _rms_norm_triple(x, weight_a, weight_b, weight_c, eps, weight_offset, casting_mode, out)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float | None = 1e-6,
    *,
    gate: Tensor | None = None,
    next_scale: Tensor | None = None,
    next_shift: Tensor | None = None,
    gate_activation: GateActivation = "none",
    alpha: float = 1.0,
    beta: float = 1.0,
    next_scale_offset: float = 1.0,
    modulation: Modulation = "steps",
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """A residual add and the norm of the sum, each plain or as blocks with gates have it::

        branch = R(x * R(gate_activation(gate)))
        residual_out = R(R(alpha * branch) + R(beta * residual))
        out = R(N(residual_out, weight)) * (next_scale_offset + next_scale) + next_shift

    What is not given is left out, with its rounding: ``R(x + residual)`` and
    ``N(residual_out, weight)`` remain.

    Args:
        x, residual: ``[..., dim]``, float32, float16 or bfloat16; residual may be float32 beside
            either of the others.
        weight: ``[dim]`` or ``None``.
        gate: ``[dim]``, what broadcasts to x's shape, such as ``[batch, 1, dim]``, or one element.
            ``None`` means no gate.
        next_scale, next_shift: of the shapes of gate. Without ``next_scale`` nothing is multiplied,
            without ``next_shift`` nothing is added; each may be there alone.
        gate_activation: of the gate: ``"none"``, ``"tanh"`` or ``"sigmoid"``. On the CPU a gate
            that rows share is better activated before the call.
        alpha, beta: factors of the branch and of the residual.
        next_scale_offset, modulation: as scale_offset and modulation of :func:`rms_norm_modulate`.
        eps, weight_offset, casting_mode: see :func:`rms_norm`.
        round_intermediates, out: see :mod:`torch_mlxnorm.functional`.

    Returns:
        ``(out, residual_out)``, each of x's shape; of the dtypes of x and residual.

    Raises:
        ValueError: ``gate_activation`` or ``modulation`` is not one of its names.
        RuntimeError: gate, next_scale or next_shift has another shape.
        Otherwise as :func:`rms_norm`.

    Source: beyond ``rms_norm.rs`` of mlx-native 0.9.0; it serves the pre-norm layers of Llama,
    Qwen, Mistral and others; Granite and MiniMax with alpha and beta, diffusion transformers with
    gate, next_scale and next_shift.

    Example::

        import torch, torch_mlxnorm

        x, residual = torch.randn(2, 8, 4096, dtype=torch.bfloat16)
        weight = torch.ones(4096, dtype=torch.bfloat16)
        y, residual = torch_mlxnorm.add_rms_norm(
            x, residual, weight, casting_mode="llama", round_intermediates=True
        )
    """
    return _add_rms_norm(
        x,
        residual,
        weight,
        eps,
        gate,
        next_scale,
        next_shift,
        gate_activation,
        alpha,
        beta,
        next_scale_offset,
        modulation,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )


def rms_norm_add(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float | None = 1e-6,
    *,
    scale: Tensor | None = None,
    gate: Tensor | None = None,
    gate_activation: GateActivation = "none",
    alpha: float = 1.0,
    beta: float = 1.0,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """A norm added to the residual stream, scaled if there is a scale::

        branch = R(R(N(x, weight)) * R(gate_activation(gate)))
        out = R(R(beta * residual) + R(alpha * branch)) * scale

    What is not given is left out, with its rounding: ``residual + R(N(x, weight))`` remains.

    Args:
        x, residual: ``[..., dim]``, float32, float16 or bfloat16; residual may be float32 beside
            either of the others.
        weight: ``[dim]`` or ``None``.
        scale: ``[dim]`` or one element. ``None`` means 1.
        gate: ``[dim]``, what broadcasts to x's shape, such as ``[batch, 1, dim]``, or one element.
            ``None`` means no gate.
        gate_activation: of the gate: ``"none"``, ``"tanh"`` or ``"sigmoid"``. On the CPU a gate
            that rows share is better activated before the call.
        alpha, beta: factors of the branch and of the residual.
        eps, weight_offset, casting_mode: see :func:`rms_norm`.
        round_intermediates, out: see :mod:`torch_mlxnorm.functional`.

    Returns:
        x's shape and residual's dtype.

    Raises:
        ValueError: ``gate_activation`` is not one of its names.
        RuntimeError: scale or gate has another shape.
        Otherwise as :func:`rms_norm`.

    Source: beyond ``rms_norm.rs`` of mlx-native 0.9.0; it serves the post-norms of Gemma 2 to 4 and
    OLMo 2, with scale the end of a dense Gemma 4 layer, with gate the blocks of Z-Image.

    Example::

        import torch, torch_mlxnorm

        x, residual = torch.randn(2, 8, 2816, dtype=torch.bfloat16)
        weight = torch.zeros(2816, dtype=torch.bfloat16)  # Gemma 3 stores weight - 1
        h = torch_mlxnorm.rms_norm_add(
            x, residual, weight, weight_offset=1.0, round_intermediates=True
        )
    """
    return _rms_norm_add(
        x,
        residual,
        weight,
        eps,
        scale,
        gate,
        gate_activation,
        alpha,
        beta,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )


def rms_norm_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    next_weight: Tensor | None,
    eps: float | None = 1e-6,
    *,
    scale: Tensor | None = None,
    gate: Tensor | None = None,
    next_scale: Tensor | None = None,
    next_shift: Tensor | None = None,
    gate_activation: GateActivation = "none",
    alpha: float = 1.0,
    beta: float = 1.0,
    next_scale_offset: float = 1.0,
    modulation: Modulation = "steps",
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """A norm added to the residual stream, scaled if there is a scale, and the norm of the sum::

        branch = R(R(N(x, weight)) * R(gate_activation(gate)))
        residual_out = R(R(R(beta * residual) + R(alpha * branch)) * scale)
        out = R(N(residual_out, next_weight)) * (next_scale_offset + next_scale) + next_shift

    What is not given is left out, with its rounding: ``R(residual + R(N(x, weight)))`` and
    ``N(residual_out, next_weight)`` remain.

    Args:
        x, residual: ``[..., dim]``, float32, float16 or bfloat16; residual may be float32 beside
            either of the others.
        weight, next_weight: ``[dim]`` or ``None`` each.
        scale: ``[dim]`` or one element. ``None`` means 1.
        gate: ``[dim]``, what broadcasts to x's shape, such as ``[batch, 1, dim]``, or one element.
            ``None`` means no gate.
        next_scale, next_shift: of the shapes of gate. Without ``next_scale`` nothing is multiplied,
            without ``next_shift`` nothing is added; each may be there alone.
        gate_activation: of the gate: ``"none"``, ``"tanh"`` or ``"sigmoid"``. On the CPU a gate
            that rows share is better activated before the call.
        alpha, beta: factors of the branch and of the residual.
        next_scale_offset, modulation: as scale_offset and modulation of :func:`rms_norm_modulate`.
        eps, weight_offset, casting_mode: see :func:`rms_norm`; the same for both norms.
        round_intermediates, out: see :mod:`torch_mlxnorm.functional`.

    Returns:
        ``(residual_out, out)``, each of x's shape; of the dtypes of residual and x.

    Raises:
        ValueError: ``gate_activation`` or ``modulation`` is not one of its names.
        RuntimeError: scale, gate, next_scale or next_shift has another shape.
        Otherwise as :func:`rms_norm`.

    Source: beyond ``rms_norm.rs`` of mlx-native 0.9.0; it serves Gemma 2, 3 and 4, where a norm of
    the residual stream follows every post-norm, and with gate and next_scale Z-Image.

    Example::

        import torch, torch_mlxnorm

        x, residual = torch.randn(2, 8, 2816, dtype=torch.bfloat16)
        weight, next_weight = torch.ones(2, 2816, dtype=torch.bfloat16)
        residual, y = torch_mlxnorm.rms_norm_add_rms_norm(
            x, residual, weight, next_weight, round_intermediates=True
        )
    """
    return _rms_norm_add_rms_norm(
        x,
        residual,
        weight,
        next_weight,
        eps,
        scale,
        gate,
        next_scale,
        next_shift,
        gate_activation,
        alpha,
        beta,
        next_scale_offset,
        modulation,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )


def fused_post_attn_triple_norm(
    hidden: Tensor,
    attn_out: Tensor,
    post_attn_weight: Tensor,
    weight_a: Tensor | None,
    weight_b: Tensor | None,
    weight_c: Tensor | None,
    eps: float | None = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The norm after attention, added to the residual stream, and three norms of the sum::

        residual_out = R(hidden + R(N(attn_out, post_attn_weight)))
        out_a = N(residual_out, weight_a)
        out_b = N(residual_out, weight_b)
        out_c = N(residual_out, weight_c)

    Args:
        hidden, attn_out: ``[..., dim]``, float32, float16 or bfloat16.
        post_attn_weight: ``[dim]``.
        weight_a, weight_b, weight_c: the same, or ``None``.
        eps, weight_offset, casting_mode: see :func:`rms_norm`; the same for all norms.
        round_intermediates, out: see :mod:`torch_mlxnorm.functional`.

    Returns:
        ``(residual_out, out_a, out_b, out_c)``, each of hidden's shape and dtype.

    Raises:
        As :func:`rms_norm`.

    Source: ported from ``dispatch_fused_post_attn_triple_norm_f32`` of mlx-native 0.9.0,
    ``rms_norm.rs``; it serves the MoE layers of Gemma 4.

    Example::

        import torch, torch_mlxnorm

        hidden, attn_out = torch.randn(2, 8, 2816)
        post, a, b = torch.ones(3, 2816)
        residual, mlp_in, moe_in, router_in = torch_mlxnorm.fused_post_attn_triple_norm(
            hidden, attn_out, post, a, b, None
        )
    """
    return _fused_post_attn_triple_norm(
        hidden,
        attn_out,
        post_attn_weight,
        weight_a,
        weight_b,
        weight_c,
        eps,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )


def fused_post_ff_norm2_endlayer(
    attn_out: Tensor,
    moe_accum: Tensor,
    residual: Tensor,
    w2: Tensor,
    w3: Tensor,
    layer_scalar: Tensor,
    eps: float | None = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The two norms at the end of a mixture-of-experts layer::

        mlp_down = R(attn_out + R(N(moe_accum, w2)))
        hidden = R(residual + R(N(mlp_down, w3))) * layer_scalar

    The names are the source's. In Gemma 4 ``attn_out`` is the normed output of the dense MLP, and
    ``residual`` the residual stream after attention.

    Args:
        attn_out, moe_accum, residual: ``[..., dim]``, float32, float16 or bfloat16.
        w2, w3: ``[dim]``.
        layer_scalar: ``[dim]`` or one element.
        eps, weight_offset, casting_mode: see :func:`rms_norm`; the same for both norms.
        round_intermediates, out: see :mod:`torch_mlxnorm.functional`.

    Returns:
        ``(mlp_down, hidden)``, each of attn_out's shape and dtype.

    Raises:
        RuntimeError: layer_scalar has another shape.
        Otherwise as :func:`rms_norm`.

    Source: ported from ``dispatch_fused_post_ff_norm2_endlayer_f32`` of mlx-native 0.9.0,
    ``rms_norm.rs``; it serves the MoE layers of Gemma 4.

    Example::

        import torch, torch_mlxnorm

        attn_out, moe_accum, residual = torch.randn(3, 8, 2816)
        w2, w3 = torch.ones(2, 2816)
        mlp_down, hidden = torch_mlxnorm.fused_post_ff_norm2_endlayer(
            attn_out, moe_accum, residual, w2, w3, torch.tensor(0.5)
        )
    """
    return _fused_post_ff_norm2_endlayer(
        attn_out,
        moe_accum,
        residual,
        w2,
        w3,
        layer_scalar,
        eps,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )


def fused_moe_wsum_post_ff_norm2_endlayer(
    expert_outputs: Tensor,
    routing_weights: Tensor,
    attn_out: Tensor,
    residual: Tensor,
    w2: Tensor,
    w3: Tensor,
    layer_scalar: Tensor,
    eps: float | None = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the experts, then :func:`fused_post_ff_norm2_endlayer`::

        moe_accum = R(sum(routing_weights[..., k] * expert_outputs[..., k, :] for k in experts))
        mlp_down = R(attn_out + R(N(moe_accum, w2)))
        hidden = R(residual + R(N(mlp_down, w3))) * layer_scalar

    The sum runs over ascending k in float32.

    Args:
        expert_outputs: ``[..., top_k, dim]``, float32, float16 or bfloat16, ``top_k`` at least 1.
        routing_weights: ``[..., top_k]``.
        attn_out, residual: ``[..., dim]``, of expert_outputs' dtype.
        w2, w3: ``[dim]``.
        layer_scalar: ``[dim]`` or one element.
        eps, weight_offset, casting_mode: see :func:`rms_norm`; the same for both norms.
        round_intermediates, out: see :mod:`torch_mlxnorm.functional`.

    Returns:
        ``(mlp_down, hidden)``, each ``[..., dim]`` of expert_outputs' dtype.

    Raises:
        RuntimeError: expert_outputs has fewer than 2 dimensions or an empty one of the last two,
            layer_scalar has another shape.
        Otherwise as :func:`rms_norm`.

    Source: ported from ``dispatch_fused_moe_wsum_post_ff_norm2_endlayer_f32_v2`` of mlx-native
    0.9.0, ``rms_norm.rs``; it serves the MoE layers of Gemma 4.

    Example::

        import torch, torch_mlxnorm

        expert_outputs = torch.randn(8, 4, 2816)  # [tokens, top_k, dim]
        routing_weights = torch.rand(8, 4).softmax(-1)
        attn_out, residual = torch.randn(2, 8, 2816)
        w2, w3 = torch.ones(2, 2816)
        mlp_down, hidden = torch_mlxnorm.fused_moe_wsum_post_ff_norm2_endlayer(
            expert_outputs, routing_weights, attn_out, residual, w2, w3, torch.tensor(0.5)
        )
    """
    return _fused_moe_wsum_post_ff_norm2_endlayer(
        expert_outputs,
        routing_weights,
        attn_out,
        residual,
        w2,
        w3,
        layer_scalar,
        eps,
        weight_offset,
        casting_mode,
        round_intermediates,
        out,
    )
