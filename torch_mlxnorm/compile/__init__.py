"""Puts the operators of this package into models that do not call them.

A model's own norms, and what stands around them, are found in its graph and replaced. Three ways::

    torch.compile(model, backend="mlxnorm")                    # op by op, no code is generated
    torch.compile(model, options=inductor_options())           # as passes of Inductor
    rewrite(torch.export.export(model, args))                  # an exported program

For inference: graphs with gradients stay as they are. :func:`report` tells what runs.
"""

from torch_mlxnorm.compile.dynamo import backend
from torch_mlxnorm.compile.export import rewrite
from torch_mlxnorm.compile.inductor import PreparePass, RewritePass, inductor_options
from torch_mlxnorm.compile.reporting import Report, report

__all__ = [
    "Report",
    "PreparePass",
    "RewritePass",
    "backend",
    "inductor_options",
    "report",
    "rewrite",
]
