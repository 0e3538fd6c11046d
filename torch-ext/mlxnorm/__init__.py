"""Layers of norms as a kernel for Hugging Face's `kernels`, on `torch_mlxnorm` of PyPI.

`layers.RMSNorm`, `layers.RMSNormGated` and `layers.RMSNormZeroCentered` are those of
`torch_mlxnorm.integrations.kernels`.
"""

try:
    from torch_mlxnorm.integrations import kernels as layers
except ImportError as error:
    raise ImportError("this kernel needs torch_mlxnorm: pip install torch_mlxnorm") from error

__all__ = ["layers"]
