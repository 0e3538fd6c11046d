"""The whole rewriting of one graph."""

from __future__ import annotations

import logging

from torch.fx import Graph, Node

from torch_mlxnorm.compile.fusions import fuse
from torch_mlxnorm.compile.nodes import aten, mutates, reads_strides, tensor_of
from torch_mlxnorm.compile.norms import rewrite_norms
from torch_mlxnorm.compile.rewriting import Rewriter, fake_mode_of, ops
from torch_mlxnorm.compile.rotary import fuse_rotary

log = logging.getLogger("torch_mlxnorm.compile")


def rewrite_graph(graph: Graph, *, fusions: bool = True) -> bool:
    """Rewrites the norms of an inference graph of ATen in place, and what stands around them.
    Returns whether there were any."""
    mode = fake_mode_of(graph)
    if mode is None or any(reads_strides(node) for node in graph.nodes):
        return False
    _drop_assertions(graph)
    rewriter = Rewriter(graph, mode)
    before = set(graph.nodes)
    norms = rewrite_norms(rewriter)
    log.info("found %d norms", len(norms))
    called = (ops.rms_norm.default, ops.channel_rms_norm.default)
    if not norms and not rewriter.calls(*called):
        return False
    _drop_copies(graph)
    if fusions:
        fuse(rewriter)
        fuse_rotary(rewriter)
    rewriter.refresh(set(graph.nodes) - before)
    graph.lint()
    return True


def _drop_assertions(graph: Graph) -> None:
    """Exported programs say of what they cast that it has the dtype that it has. Of what a graph
    computes that is known; inputs are asked for theirs as before."""
    for node in graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        if isinstance(node.args[0], Node) and node.args[0].op == "call_function":
            graph.erase_node(node)


def _drop_copies(graph: Graph) -> None:
    """A dropout of nothing, which eager mode skips, is a copy here. Where nothing is written to,
    and no result of the graph is made another name of one, it has no use."""
    if any(mutates(node) for node in graph.nodes):
        return
    results = set(graph.output_node().all_input_nodes)
    for node in graph.find_nodes(op="call_function", target=aten.clone.default):
        copied = node.args[0]
        old, new = tensor_of(copied), tensor_of(node)
        if node.kwargs or node in results or copied in results or old is None or new is None:
            continue
        if old.stride() == new.stride() and copied.op == "call_function":
            node.replace_all_uses_with(copied)
            graph.erase_node(node)
