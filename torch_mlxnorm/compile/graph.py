"""The whole rewriting of one graph."""

from __future__ import annotations

import logging

from torch.fx import Graph

from torch_mlxnorm.compile.fusions import fuse
from torch_mlxnorm.compile.norms import rewrite_norms
from torch_mlxnorm.compile.rewriting import Rewriter, fake_mode_of
from torch_mlxnorm.compile.rotary import fuse_rotary

log = logging.getLogger("torch_mlxnorm.compile")


def rewrite_graph(graph: Graph, *, fusions: bool = True) -> bool:
    """Rewrites the norms of an inference graph of ATen in place, and what stands around them.
    Returns whether there were any."""
    mode = fake_mode_of(graph)
    if mode is None:
        return False
    rewriter = Rewriter(graph, mode)
    before = set(graph.nodes)
    norms = rewrite_norms(rewriter)
    log.info("found %d norms", len(norms))
    if not norms:
        return False
    if fusions:
        fuse(rewriter)
        fuse_rotary(rewriter)
    rewriter.refresh(set(graph.nodes) - before)
    graph.lint()
    return True
