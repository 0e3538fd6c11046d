"""C++ back end: turn a parsed shader into C++17 for the executor.

The text of the shader stays as it is, line by line, so that compiler messages, debug lines and
`__builtin_LINE()` keep naming the shader. Only Metal's own constructs are replaced:

- address spaces disappear (`constant` becomes `const`);
- kernel attributes move into a traits struct in front of the kernel, where the C++ compiler
  evaluates buffer indices and thread limits that are expressions;
- threadgroup variables become references into memory that the executor owns and checks;
- function constants become objects that ask the executor for their value, and constants whose
  initializers read them become objects that evaluate the initializer;
- explicit instantiations become registrations at the end of the file.
"""

from __future__ import annotations

from collections.abc import Sequence

from .edits import Edit, address_space_edits, apply
from .msl import Kernel, Location, Parameter, Program, Span, ThreadgroupDeclaration

# Threads per threadgroup that a pipeline allows when the shader names no limit.
DEFAULT_MAX_THREADS = "1024"


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _site(location: Location) -> str:
    return f"{{{_quote(location.file)}, {location.line}}}"


def _traits_name(kernel: Kernel) -> str:
    return f"{kernel.name}_simulator_traits"


def _template_head(kernel: Kernel) -> str:
    if not kernel.is_template:
        return ""
    return f"template <{', '.join(p.declaration for p in kernel.template_parameters)}> "


def _self_reference(kernel: Kernel) -> str:
    """The kernel's own specialization, named from inside its body."""
    if not kernel.is_template:
        return f"&{kernel.name}"
    return f"&{kernel.name}<{', '.join(p.name for p in kernel.template_parameters)}>"


def _argument(parameter: Parameter) -> str:
    index = f"static_cast<int>({parameter.index})" if parameter.index is not None else "0"
    present = "nullptr"
    if parameter.condition is not None:
        present = f"+[] {{ return static_cast<bool>({parameter.condition}); }}"
    kind = f"sim::ArgumentKind::{parameter.kind}"
    return f"{{{kind}, {index}, {_quote(parameter.name)}, {present}}}"


def _traits(kernel: Kernel) -> str:
    # An array of length zero is not C++; the sentinel is not counted.
    arguments = [_argument(p) for p in kernel.parameters] + ["{}"]
    max_threads = kernel.max_threads or DEFAULT_MAX_THREADS
    return (
        f"{_template_head(kernel)}struct {_traits_name(kernel)} {{ "
        f"static constexpr uint32_t max_threads = {max_threads}; "
        f"static constexpr sim::Argument arguments[] = {{{', '.join(arguments)}}}; "
        f"static constexpr sim::Site site = {_site(kernel.location)}; }}; "
    )


def _threadgroup_references(
    kernel: Kernel, declaration: ThreadgroupDeclaration, first_index: int
) -> str:
    references = []
    function = _self_reference(kernel)
    for index, variable in enumerate(declaration.variables, first_index):
        name = f"sim_name_{variable.name}"
        references.append(
            f"static constexpr char {name}[] = {_quote(variable.name)}; "
            f"auto& {variable.name} = sim::threadgroup_variable<{function}, {index}, "
            f"{variable.type}{variable.extents}, {name}>();"
        )
    return " ".join(references)


def _kernel_edits(kernel: Kernel) -> list[Edit]:
    edits = [Edit(Span(kernel.head.start, kernel.head.start), _traits(kernel))]
    edits += [Edit(span, "") for span in kernel.removable]
    for parameter in kernel.parameters:
        edits += [Edit(span, "") for span in parameter.attribute_spans]
    index = 0
    for declaration in kernel.threadgroup_declarations:
        edits.append(Edit(declaration.span, _threadgroup_references(kernel, declaration, index)))
        index += len(declaration.variables)
    return edits


def _registration(number: int, host_name: str, kernel: Kernel, arguments: str) -> str:
    suffix = f"<{arguments}>" if kernel.is_template else ""
    return (
        f"const sim::KernelRegistration<&{kernel.name}{suffix}, {_traits_name(kernel)}{suffix}> "
        f"registration_{number}{{{_quote(host_name)}}};"
    )


def generate(program: Program, host_names: Sequence[str] | None = None) -> str:
    """C++ source of a shader that registers the named entry points (all by default)."""
    edits: list[Edit] = []
    for kernel in program.kernels:
        edits += _kernel_edits(kernel)
    for constant in program.function_constants:
        replacement = (
            f"static const sim::FunctionConstant<{constant.type}, ({constant.index})> "
            f"{constant.name}{{{_quote(constant.name)}, {_site(constant.location)}}};"
        )
        edits.append(Edit(constant.span, replacement))
    for derived in program.derived_constants:
        evaluate = f"operator {derived.type}() const {{ return {derived.initializer}; }}"
        name = derived.name
        replacement = f"static const struct {name}_simulator_constant {{ {evaluate} }} {name}{{}};"
        edits.append(Edit(derived.span, replacement))
    edits += [Edit(instantiation.span, "") for instantiation in program.instantiations]
    replaced = [edit.span for edit in edits]
    edits += address_space_edits(program, replaced)

    registrations = [
        _registration(number, *entry)
        for number, entry in enumerate(program.entry_points())
        if host_names is None or entry[0] in host_names
    ]
    # An unnamed namespace: parts of one library may not collide, and what a part does not register
    # is not compiled.
    lines = ['#include "msl.h"', "namespace {", apply(program.text, edits)]
    lines += ['#line 1 "<registrations>"', *registrations, "}  // namespace", ""]
    return "\n".join(lines)
