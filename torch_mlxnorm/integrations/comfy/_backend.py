"""Functions of comfy-kitchen as calls of the operators, under its names and with its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from torch_mlxnorm.functional import qk_norm_rope, rms_norm_add, rms_norm_modulate, rms_norm_rope
from torch_mlxnorm.integrations._norms import has_kernels_for

Dtypes = tuple[torch.dtype, ...]
Refusal = tuple[str, str] | None  # a parameter, and what does not fit


DEVICES = ("mps", "cpu")


def devices_with_kernels() -> tuple[str, ...]:
    return tuple(device for device in DEVICES if has_kernels_for(torch.device(device)))


def rope_tables(freqs: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """cos and sin for each element of a row: ``freqs_cis`` ``[..., pairs, 2, 2]`` has a matrix for
    each pair, which need not be a rotation. Elements in the order of the pairs that are rotated."""
    after = -1 if interleaved else -2
    cos = torch.stack((freqs[..., 0, 0], freqs[..., 1, 1]), after)
    sin = torch.stack((-freqs[..., 0, 1], freqs[..., 1, 0]), after)
    return cos.flatten(-2), sin.flatten(-2)


class Backend:
    """Takes the place of a module in comfy-kitchen's registry.

    Attributes:
        options: of the operators, by a function and the dtypes of its tensors (``TENSORS``). A call
            with others must not get here: :meth:`refusal` is a rule of the registry.
        check_inplace: comfy-kitchen's own check of what in-place functions are given.
    """

    def __init__(self, check_inplace: Callable[..., None]) -> None:
        self.options: dict[tuple[str, Dtypes], dict[str, Any]] = {}
        self.check_inplace = check_inplace

    def refusal(self, name: str, arguments: Mapping[str, Any]) -> Refusal:
        """Why a call is left to the next backend, or None."""
        for key in arguments:
            if key not in PARAMETERS[name]:
                return key, "it is not known here"
        tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
        for key in TENSORS[name]:
            if key not in tensors:
                return key, "it is not a tensor"
        first, device = TENSORS[name][0], tensors[TENSORS[name][0]].device
        for key, tensor in tensors.items():
            if type(tensor) not in (Tensor, nn.Parameter):
                return key, f"it is a {type(tensor).__name__}"
            if tensor.device != device:
                return key, f"it is on {tensor.device}, {first} is on {device}"
            if tensor.requires_grad and torch.is_grad_enabled():
                return key, "it requires a gradient, and the operators are for inference"
        if torch.is_autocast_enabled(device.type):
            return first, "autocast is enabled"
        if (name, tuple(tensors[key].dtype for key in TENSORS[name])) not in self.options:
            return first, "no operator rounds as the eager backend does with these dtypes"
        if name in _ROPES:
            return _refusal_of_rope(arguments)
        return _refusal_of_adaln(arguments) if name == "rms_adaln" else _refusal_of_sum(arguments)

    def _options(self, name: str, *tensors: Tensor) -> dict[str, Any]:
        return self.options[name, tuple(tensor.dtype for tensor in tensors)]

    def _rope1(
        self, name: str, x: Tensor, freqs: Tensor, scale: Tensor, epsilon: float, out: Tensor
    ) -> Tensor:
        options = self._options(name, x, freqs, scale)
        cos, sin = rope_tables(freqs, options["interleaved"])
        return rms_norm_rope(x, scale, cos, sin, epsilon, out=out, **options)

    def _rope(
        self,
        name: str,
        qk: tuple[Tensor, Tensor],
        freqs: Tensor,
        scales: tuple[Tensor, Tensor | None],
        epsilon: float,
        out: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        options = self._options(name, qk[0], freqs, scales[0])
        cos, sin = rope_tables(freqs, options["interleaved"])
        k_scale = scales[0] if scales[1] is None else scales[1]
        return qk_norm_rope(*qk, scales[0], k_scale, cos, sin, epsilon, out=out, **options)

    # Results have the strides of `empty_like`, as the fakes of comfy-kitchen's custom ops say.

    def rms_rope1(
        self, x: Tensor, freqs_cis: Tensor, scale: Tensor, epsilon: float = 1e-6
    ) -> Tensor:
        return self._rope1("rms_rope1", x, freqs_cis, scale, epsilon, torch.empty_like(x))

    def rms_rope1_(
        self, x: Tensor, freqs_cis: Tensor, scale: Tensor, epsilon: float = 1e-6
    ) -> Tensor:
        self.check_inplace(x, readonly=(freqs_cis, scale))
        return self._rope1("rms_rope1_", x, freqs_cis, scale, epsilon, x)

    def rms_rope_split_half1(
        self, x: Tensor, freqs_cis: Tensor, scale: Tensor, epsilon: float = 1e-6
    ) -> Tensor:
        out = torch.empty_like(x)
        return self._rope1("rms_rope_split_half1", x, freqs_cis, scale, epsilon, out)

    def rms_rope_split_half1_(
        self, x: Tensor, freqs_cis: Tensor, scale: Tensor, epsilon: float = 1e-6
    ) -> Tensor:
        self.check_inplace(x, readonly=(freqs_cis, scale))
        return self._rope1("rms_rope_split_half1_", x, freqs_cis, scale, epsilon, x)

    def rms_rope(
        self,
        q: Tensor,
        k: Tensor,
        freqs_cis: Tensor,
        q_scale: Tensor,
        k_scale: Tensor | None = None,
        epsilon: float = 1e-6,
    ) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(q), torch.empty_like(k)
        return self._rope("rms_rope", (q, k), freqs_cis, (q_scale, k_scale), epsilon, out)

    def rms_rope_(
        self,
        q: Tensor,
        k: Tensor,
        freqs_cis: Tensor,
        q_scale: Tensor,
        k_scale: Tensor | None = None,
        epsilon: float = 1e-6,
    ) -> tuple[Tensor, Tensor]:
        self._check_pair(q, k, freqs_cis, q_scale, k_scale)
        return self._rope("rms_rope_", (q, k), freqs_cis, (q_scale, k_scale), epsilon, (q, k))

    def rms_rope_split_half(
        self,
        q: Tensor,
        k: Tensor,
        freqs_cis: Tensor,
        q_scale: Tensor,
        k_scale: Tensor | None = None,
        epsilon: float = 1e-6,
        rot_dim: int = 0,  # the width of freqs_cis says it as well
    ) -> tuple[Tensor, Tensor]:
        name, out = "rms_rope_split_half", (torch.empty_like(q), torch.empty_like(k))
        return self._rope(name, (q, k), freqs_cis, (q_scale, k_scale), epsilon, out)

    def rms_rope_split_half_(
        self,
        q: Tensor,
        k: Tensor,
        freqs_cis: Tensor,
        q_scale: Tensor,
        k_scale: Tensor | None = None,
        epsilon: float = 1e-6,
        rot_dim: int = 0,
    ) -> tuple[Tensor, Tensor]:
        self._check_pair(q, k, freqs_cis, q_scale, k_scale)
        name, out = "rms_rope_split_half_", (q, k)
        return self._rope(name, (q, k), freqs_cis, (q_scale, k_scale), epsilon, out)

    def _check_pair(
        self, q: Tensor, k: Tensor, freqs: Tensor, q_scale: Tensor, k_scale: Tensor | None
    ) -> None:
        k_scale = q_scale if k_scale is None else k_scale
        self.check_inplace(q, k, readonly=(freqs, q_scale, k_scale))

    def rms_adaln(self, x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
        options = self._options("rms_adaln", x, scale, shift)
        return rms_norm_modulate(x, None, scale, shift, eps, out=torch.empty_like(x), **options)

    def rms_gated_residual(
        self,
        activation: Tensor,
        norm_weight: Tensor,
        residual: Tensor,
        gate: Tensor,
        eps: float = 1e-5,
    ) -> Tensor:
        options = self._options("rms_gated_residual", activation, norm_weight, residual, gate)
        return rms_norm_add(activation, residual, norm_weight, eps, gate=gate, **options)


_ROPE1, _ROPE = ("x", "freqs_cis", "scale"), ("q", "freqs_cis", "q_scale")
_ROPES = {
    name: _ROPE1 if name.rstrip("_").endswith("1") else _ROPE
    for base in ("rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1")
    for name in (base, base + "_")
}
# Functions, and the parameters whose dtypes decide how their results are rounded.
TENSORS: dict[str, tuple[str, ...]] = {
    **_ROPES,
    "rms_adaln": ("x", "scale", "shift"),
    "rms_gated_residual": ("activation", "norm_weight", "residual", "gate"),
}
PARAMETERS = {name: frozenset(signature(getattr(Backend, name)).parameters) for name in TENSORS}


def has_rows(x: Tensor) -> bool:
    """Whether an `empty_like` of it has rows that the operators write."""
    leading = zip(x.shape[:-1], x.stride()[:-1], strict=True)
    is_free = x.dim() <= 4 or x.is_contiguous()
    return is_free and x.stride(-1) == 1 and all(size < 2 or stride > 1 for size, stride in leading)


def _broadcasts(operand: Tensor, x: Tensor) -> bool:
    """To x, with x's last dimension, and without making it larger."""
    if not 0 < operand.dim() <= x.dim() or operand.shape[-1] != x.shape[-1]:
        return False
    return all(
        a in (1, b) for a, b in zip(reversed(operand.shape), reversed(x.shape), strict=False)
    )


def _refusal_of_rope(arguments: Mapping[str, Any]) -> Refusal:
    freqs = arguments["freqs_cis"]
    xs = [name for name in ("x", "q", "k") if name in arguments]
    for name in xs:
        x = arguments[name]
        dim = x.shape[-1]
        rotated = arguments.get("rot_dim") or dim
        if not 0 < rotated <= dim or rotated % 2 or freqs.shape[3:] != (rotated // 2, 2, 2):
            return "freqs_cis", f"it has no matrix for each pair of {rotated} elements of {name}"
        if any(size not in (1, n) for size, n in zip(freqs.shape, x.shape[:-1], strict=False)):
            return "freqs_cis", f"it does not broadcast to {name}"
        if not has_rows(x):
            return name, "its rows do not lie one behind another"
        for scale in ("scale", "q_scale", "k_scale"):
            if arguments.get(scale) is not None and arguments[scale].shape != (dim,):
                return scale, f"it does not have the {dim} elements of a row"
    if len(xs) == 2:
        q, k, q_scale, k_scale = (arguments.get(n) for n in ("q", "k", "q_scale", "k_scale"))
        if q.dtype != k.dtype or sum(a != b for a, b in zip(q.shape, k.shape, strict=True)) > 1:
            return "k", "it differs from q in more than the number of heads"
        if k_scale is not None and k_scale.dtype != q_scale.dtype:
            return "k_scale", "it has another dtype than q_scale"
    return None


def _refusal_of_adaln(arguments: Mapping[str, Any]) -> Refusal:
    x = arguments["x"]
    if not x.dim() or not x.shape[-1] or not has_rows(x):
        return "x", "its rows do not lie one behind another"
    for name in ("scale", "shift"):
        if not _broadcasts(arguments[name], x):
            return name, "it does not broadcast to the rows of x"
    return None


def _refusal_of_sum(arguments: Mapping[str, Any]) -> Refusal:
    x, weight = arguments["activation"], arguments["norm_weight"]
    if not x.dim() or not x.shape[-1]:
        return "activation", "it has no rows"
    if weight.shape != x.shape[-1:]:
        return "norm_weight", f"it does not have the {x.shape[-1]} elements of a row"
    if arguments["residual"].shape != x.shape:
        return "residual", "it does not have the shape of activation"
    for name in ("activation", "residual"):
        # The operator's result is contiguous; a chain's has the order of these.
        if not torch.empty_like(arguments[name], device="meta").is_contiguous():
            return name, "its dimensions are permuted"
    if not _broadcasts(arguments["gate"], x):
        return "gate", "it does not broadcast to the rows of activation"
    return None
