"""Passes for Inductor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch._inductor import custom_graph_pass
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph

from torch_mlxnorm._version import __version__
from torch_mlxnorm.compile.graph import rewrite_graph
from torch_mlxnorm.compile.prepare import prepare

# PyTorch 2.8 has none.
_InferenceAware: Any = getattr(custom_graph_pass, "CustomInferenceAwareGraphPass", CustomGraphPass)
_FILES = tuple(str(path) for path in sorted(Path(__file__).parent.glob("*.py")))


def _uuid(what: str) -> bytes:
    """Compiled graphs are kept on disk for as long as these files are the same."""
    return get_hash_for_files(_FILES, f"{what} {__version__}")


def _traces_inference() -> bool:
    context = torch._guards.TracingContext.try_get()
    metadata = None if context is None else context.fw_metadata
    return metadata is not None and not metadata.is_train


class PreparePass(CustomGraphPass):
    """For ``pre_grad_custom_pass``: calls of :func:`torch.nn.functional.rms_norm`."""

    def __call__(self, graph: Graph) -> None:
        prepare(graph)

    def uuid(self) -> bytes:
        return _uuid("prepare")


class RewritePass(_InferenceAware):
    """For ``post_grad_custom_pre_pass``: norms, and what stands around them."""

    def __call__(self, graph: Graph, is_inference: bool | None = None) -> None:
        if _traces_inference() if is_inference is None else is_inference:
            rewrite_graph(graph)

    def uuid(self) -> bytes:
        return _uuid("rewrite")


def inductor_options() -> dict[str, Any]:
    """Options of :func:`torch.compile` with which Inductor puts the operators into its graphs::

        torch.compile(model, options=torch_mlxnorm.compile.inductor_options())
        torch.compile(model, options={**inductor_options(), "max_autotune": True})

    Graphs with gradients stay as they are. Inductor's caches work: a graph that comes from one has
    the operators in it, which :func:`report` shows.

    Returns:
        A dict that may be extended: ``pre_grad_custom_pass`` and ``post_grad_custom_pre_pass``.
    """
    return {
        "pre_grad_custom_pass": PreparePass(),
        "post_grad_custom_pre_pass": RewritePass(),
    }
