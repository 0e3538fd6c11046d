"""CUDA back end: turn a parsed shader into CUDA C++ for NVRTC.

As in the C++ back end the text of the shader stays as it is, line by line. SIMD groups are warps
and threadgroups blocks:

- address spaces disappear, but for `threadgroup` variables, which are `__shared__`, and constants
  of the file, which are `__device__ constexpr`;
- function constants become constants, whose values the entry point is compiled with;
- kernels become device functions that a `__global__` one calls, with buffers, bytes and built-in
  arguments from `cuda_kernel.h`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .edits import Edit, address_space_edits, apply
from .msl import Kernel, Location, Parameter, Program, Span, TranslationError

DEFAULT_MAX_THREADS = "1024"


def _template_head(kernel: Kernel) -> str:
    if not kernel.is_template:
        return ""
    return f"template <{', '.join(p.declaration for p in kernel.template_parameters)}> "


def _kernel_edits(kernel: Kernel) -> Iterator[Edit]:
    max_threads = kernel.max_threads or DEFAULT_MAX_THREADS
    limits = f"struct {kernel.name}_limits {{ enum {{ kMaxThreads = {max_threads} }}; }}; "
    yield Edit(Span(kernel.head.start, kernel.head.start), _template_head(kernel) + limits)
    for span in kernel.removable:
        yield Edit(span, "")
    for parameter in kernel.parameters:
        for span in parameter.attribute_spans:
            yield Edit(span, "")
    for declaration in kernel.threadgroup_declarations:
        start = declaration.span.start
        yield Edit(Span(start, start + len("threadgroup")), "__shared__")


def _file_constants(program: Program) -> Iterator[Edit]:
    """`constant` in front of a declaration of the file, not of a parameter or in a body."""
    depth = 0
    for token in program.tokens:
        depth += (token.text in "({[") - (token.text in ")}]")
        if token.text == "constant" and depth == 0:
            yield Edit(token.span, "__device__ constexpr")


def _argument(parameter: Parameter) -> str:
    if parameter.kind == "threadgroup":
        return f"sim::threadgroup_pointer(arguments, {parameter.index})"
    if parameter.kind != "buffer":
        return f"sim::{parameter.kind}()"
    kind = "reference" if parameter.type.rstrip().endswith("&") else "pointer"
    return f"sim::{kind}(arguments, {parameter.index})"


def entry_name(number: int) -> str:
    """Of a `__global__` function, by the number of its kernel among those that were asked for."""
    return f"sim_entry_{number}"


def _entry(number: int, kernel: Kernel, template_arguments: str) -> str:
    suffix = f"<{template_arguments}>" if kernel.is_template else ""
    arguments = ", ".join(_argument(parameter) for parameter in kernel.parameters)
    return f"""\
extern "C" __global__ void __launch_bounds__({kernel.name}_limits{suffix}::kMaxThreads)
{entry_name(number)}(const __grid_constant__ sim::Arguments arguments) {{
  {kernel.name}{suffix}({arguments});
}}
"""


@dataclass(frozen=True)
class Translated:
    """A shader as CUDA, but for entry points and the values of its function constants."""

    program: Program
    text: str


def translate(program: Program) -> Translated:
    edits = [edit for kernel in program.kernels for edit in _kernel_edits(kernel)]
    for constant in program.function_constants:
        value = f"sim::constant_value<{constant.type}, ({constant.index})>()"
        edits.append(Edit(constant.span, f"constexpr {constant.type} {constant.name} = {value};"))
    for derived in program.derived_constants:
        text = f"constexpr {derived.type} {derived.name} = {derived.initializer};"
        edits.append(Edit(derived.span, text))
    edits += [Edit(instantiation.span, "") for instantiation in program.instantiations]
    replaced = [edit.span for edit in edits]
    for edit in _file_constants(program):
        if not any(span.start <= edit.span.start < span.end for span in replaced):
            edits.append(edit)
    edits += address_space_edits(program, [edit.span for edit in edits])
    return Translated(program, apply(program.text, edits))


def generate(shader: Translated, host_names: Sequence[str], constants: Mapping[int, str]) -> str:
    """CUDA source with an entry point for each of the kernels.

    constants: values of all function constants by their index, as C++ has them.
    """
    known = {name: (kernel, values) for name, kernel, values in shader.program.entry_points()}
    for name in host_names:
        if name not in known:
            raise TranslationError(Location("<source>", 1), f"there is no kernel '{name}'")
    values = "".join(
        f"template <> struct ConstantValue<{index}> {{ static constexpr auto value = {value}; }};\n"
        for index, value in sorted(constants.items())
    )
    entries = "".join(_entry(number, *known[name]) for number, name in enumerate(host_names))
    return f"""#include "cuda_kernel.h"
namespace msl {{
namespace sim {{
{values}}}
{shader.text}
#line 1 "<entries>"
{entries}}}  // namespace msl
"""
