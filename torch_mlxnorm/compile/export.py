"""Exported programs."""

from __future__ import annotations

import copy

from torch.export import ExportedProgram

from torch_mlxnorm.compile.graph import rewrite_graph


def rewrite(program: ExportedProgram) -> ExportedProgram:
    """A program that calls the operators where the given one has norms.

    Args:
        program: of :func:`torch.export.export`, at any stage. It stays as it is.

    Returns:
        A program of the same inputs, outputs and weights. Its graph is functional (that of
        ``program.run_decompositions({})``), also where there is nothing to rewrite.

    Raises:
        TypeError: ``program`` is not an :class:`torch.export.ExportedProgram`.
    """
    if not isinstance(program, ExportedProgram):
        raise TypeError(f"program must be an ExportedProgram, got {type(program).__name__}")
    new = program.run_decompositions({})
    if new is program or new.graph_module is program.graph_module:
        new = copy.deepcopy(program)
    before = _outputs(new)
    if rewrite_graph(new.graph):
        for old, result in zip(before, _outputs(new), strict=True):
            if old != result:
                new.graph_signature.replace_all_uses(old, result)
        new.graph_module.recompile()
        new.validate()
    return new


def _outputs(program: ExportedProgram) -> list[str]:
    """The names of the results, which the signature repeats."""
    return [str(result) for result in program.graph.output_node().args[0]]
