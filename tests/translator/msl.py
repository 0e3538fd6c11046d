"""Front end for the Metal Shading Language: preprocess a shader and find what a back end needs.

MSL is C++14 with a few additions, so a back end does not need a full parse: it keeps almost the
whole text as it is and rewrites the Metal-only constructs. This module finds those constructs
(kernels with their parameters and attributes, explicit instantiations, function constants,
threadgroup variables) and describes each with a dataclass that carries its place in the text.
It knows nothing about any target language.

Line markers of the preprocessor stay in the text, so every place has the file and line of the
shader it came from. What the parser does not understand is a `TranslationError` that says where.
"""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

METAL_VERSION = 310
METAL_HEADERS = Path(__file__).resolve().parent / "metal_headers"
TYPES = Path(__file__).resolve().parent / "msl"  # MSL's types and functions for both back ends

# Built-in kernel arguments: attribute name -> whether it may be a 2- or 3-component vector.
BUILTIN_ARGUMENTS = {
    "thread_position_in_grid": True,
    "threads_per_grid": True,
    "threadgroup_position_in_grid": True,
    "threadgroups_per_grid": True,
    "thread_position_in_threadgroup": True,
    "threads_per_threadgroup": True,
    "dispatch_threads_per_threadgroup": True,
    "thread_index_in_threadgroup": False,
    "thread_index_in_simdgroup": False,
    "simdgroup_index_in_threadgroup": False,
    "simdgroups_per_threadgroup": False,
    "dispatch_simdgroups_per_threadgroup": False,
    "threads_per_simdgroup": False,
    "thread_execution_width": False,
}
ADDRESS_SPACES = frozenset({"device", "constant", "threadgroup", "thread"})

# Words that MSL does not have (or that this tool does not support), with the reason to print.
_REJECTED_WORDS = {
    "double": "MSL has no double",
    "new": "MSL has no dynamic memory",
    "delete": "MSL has no dynamic memory",
    "try": "MSL has no exceptions",
    "throw": "MSL has no exceptions",
    "virtual": "MSL has no virtual functions",
    "dynamic_cast": "MSL has no run-time type information",
    "typeid": "MSL has no run-time type information",
    "thread_local": "MSL has no thread_local",
    "goto": "MSL has no goto",
    "vertex": "only compute kernels are supported",
    "fragment": "only compute kernels are supported",
}
_REJECTED_PREFIXES = {
    "atomic_": "atomics are not supported",
    "simdgroup_float": "simdgroup matrices are not supported",
    "simdgroup_half": "simdgroup matrices are not supported",
    "texture": "textures are not supported",
}


@dataclass(frozen=True)
class Location:
    """A place in an original source file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class TranslationError(Exception):
    """The shader holds something that cannot be translated; the text names file and line."""

    def __init__(self, location: Location, message: str) -> None:
        super().__init__(f"{location}: error: {message}")
        self.location = location


@dataclass(frozen=True)
class Span:
    """Character range [start, end) of the preprocessed text."""

    start: int
    end: int


@dataclass(frozen=True)
class Token:
    kind: str  # "word", "number", "string", "character", "punctuation"
    text: str
    span: Span


@dataclass(frozen=True)
class Attribute:
    """One entry of `[[a, b(argument)]]`."""

    name: str
    argument: str | None
    location: Location


@dataclass(frozen=True)
class TemplateParameter:
    """`typename T` or `int K`; `declaration` is the whole text, default argument included."""

    declaration: str
    name: str


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter.

    kind is "buffer", "threadgroup" or the name of a built-in argument. `index` is the C++
    expression inside `buffer(...)` or `threadgroup(...)` (a literal or a constant of the shader).
    `condition` is the function constant that decides whether the argument exists, if there is one.
    """

    type: str
    name: str
    kind: str
    index: str | None
    condition: str | None
    location: Location
    attribute_spans: tuple[Span, ...]


@dataclass(frozen=True)
class ThreadgroupVariable:
    """`threadgroup float scratch[32]`, one declarator: type "float", extents "[32]"."""

    type: str
    name: str
    extents: str
    location: Location


@dataclass(frozen=True)
class ThreadgroupDeclaration:
    """A whole declaration statement (one or more variables), semicolon included."""

    variables: tuple[ThreadgroupVariable, ...]
    span: Span


@dataclass(frozen=True)
class Kernel:
    """A kernel definition, plain or template."""

    name: str
    host_name: str | None
    template_parameters: tuple[TemplateParameter, ...]
    parameters: tuple[Parameter, ...]
    max_threads: str | None
    threadgroup_declarations: tuple[ThreadgroupDeclaration, ...]
    location: Location
    head: Span  # from the first token (template, attribute or keyword) to the opening brace
    body: Span  # the braces included
    removable: tuple[Span, ...]  # attributes and the word `kernel`

    @property
    def is_template(self) -> bool:
        return bool(self.template_parameters)


@dataclass(frozen=True)
class Instantiation:
    """`template [[host_name("n")]] [[kernel]] decltype(f<A>) f<A>;`: arguments is "A"."""

    host_name: str
    kernel: str
    arguments: str
    location: Location
    span: Span


@dataclass(frozen=True)
class FunctionConstant:
    """`constant bool has_weight [[function_constant(0)]];`"""

    type: str
    name: str
    index: str
    location: Location
    span: Span


@dataclass(frozen=True)
class DerivedConstant:
    """`constant bool has_scale = (operand_types & 3) != 0;`, where operand_types is a function
    constant (or derived itself): the initializer is evaluated when a pipeline is made."""

    type: str
    name: str
    initializer: str
    span: Span


@dataclass
class Program:
    """A preprocessed shader and everything found in it."""

    text: str
    tokens: list[Token]
    kernels: list[Kernel] = field(default_factory=list)
    instantiations: list[Instantiation] = field(default_factory=list)
    function_constants: list[FunctionConstant] = field(default_factory=list)
    derived_constants: list[DerivedConstant] = field(default_factory=list)

    def entry_points(self) -> list[tuple[str, Kernel, str]]:
        """(name the host asks for, kernel, template arguments) of everything dispatchable."""
        by_name = {kernel.name: kernel for kernel in self.kernels}
        entries = [(k.host_name or k.name, k, "") for k in self.kernels if not k.is_template]
        entries += [(i.host_name, by_name[i.kernel], i.arguments) for i in self.instantiations]
        return entries


# ---- preprocessing ------------------------------------------------------------------------------


def preprocess(
    source: Path,
    preprocessor: Sequence[str],
    include_dirs: Sequence[Path] = (),
    defines: Sequence[str] = (),
    display_name: str | None = None,
) -> str:
    """Run the C preprocessor (for example `["clang++-19"]`) over a shader; line markers stay.

    display_name is what locations call the file itself; `#line` directives in it win over that.
    """
    text = source.read_text()
    if display_name is not None:
        text = f'#line 1 "{display_name}"\n{text}'
    command = [*preprocessor, "-E", "-x", "c++", "-std=c++14", "-nostdinc", "-undef"]
    command += ["-D__METAL__=1", f"-D__METAL_VERSION__={METAL_VERSION}", "-D__METAL_MACOS__=1"]
    command += [f"-D{define}" for define in defines]
    command += [f"-I{path}" for path in (source.parent, *include_dirs, METAL_HEADERS)]
    result = subprocess.run([*command, "-"], input=text, capture_output=True, text=True)
    if result.returncode != 0:
        match = re.search(r"^(\S+?):(\d+)(?::\d+)?: ", result.stderr, re.MULTILINE)
        location = Location(match[1], int(match[2])) if match else Location(str(source), 1)
        raise TranslationError(location, "the preprocessor failed:\n" + result.stderr.strip())
    return result.stdout


# ---- tokens -------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""
    (?P<directive>^[ \t]*\#[^\n]*)
  | (?P<space>\s+)
  | (?P<string>(?:u8|[uUL])?"(?:\\.|[^"\\\n])*")
  | (?P<character>'(?:\\.|[^'\\\n])*')
  | (?P<word>[A-Za-z_]\w*)
  | (?P<number>\.?\d(?:[eEpP][+-]|[\w.])*)
  | (?P<punctuation>.)
    """,
    re.VERBOSE | re.MULTILINE,
)
_LINE_MARKER = re.compile(r'[ \t]*#(?:line)?[ \t]+(\d+)(?:[ \t]+"((?:\\.|[^"\\])*)")?')
_METAL_PRAGMA = re.compile(r"^[ \t]*#[ \t]*pragma[ \t]+METAL\b[^\n]*", re.MULTILINE)
# They say how much a compiler may change results. The C++ compiler is told to change nothing.
_KNOWN_PRAGMA = re.compile(
    r"[ \t]*#[ \t]*pragma[ \t]+METAL[ \t]+fp[ \t]+"
    r"(?:contract\((?:off|on|fast)\)|math_mode\((?:safe|relaxed|fast)\))[ \t]*"
)
_CLOSERS = {"(": ")", "[": "]", "{": "}", "<": ">"}


class _LineTable:
    """Maps offsets of the preprocessed text to original files and lines."""

    def __init__(self, text: str) -> None:
        self._starts: list[int] = []
        self._locations: list[Location] = []
        file, line, offset = "<source>", 1, 0
        for content in text.splitlines(keepends=True):
            marker = _LINE_MARKER.match(content)
            self._starts.append(offset)
            self._locations.append(Location(file, line))
            if marker:
                line = int(marker[1])
                file = marker[2] if marker[2] is not None else file
            else:
                line += 1
            offset += len(content)

    def at(self, offset: int) -> Location:
        return self._locations[max(bisect_right(self._starts, offset) - 1, 0)]


def _tokenize(text: str) -> Iterator[Token]:
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind not in ("space", "directive"):
            yield Token(kind, match[0], Span(match.start(), match.end()))


# ---- parsing ------------------------------------------------------------------------------------


def parse(text: str) -> Program:
    """Find kernels, instantiations and function constants in preprocessed MSL."""
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokenize(text))
        self.lines = _LineTable(text)
        self.program = Program(text, self.tokens)

    # Helpers over token indices. A range is [first, last).

    def location(self, index: int) -> Location:
        if not self.tokens:
            return Location("<source>", 1)
        return self.lines.at(self.tokens[min(index, len(self.tokens) - 1)].span.start)

    def error(self, index: int, message: str) -> TranslationError:
        return TranslationError(self.location(index), message)

    def is_at(self, index: int, *texts: str) -> bool:
        if index < 0 or index + len(texts) > len(self.tokens):
            return False
        return all(self.tokens[index + i].text == text for i, text in enumerate(texts))

    def source(self, first: int, last: int) -> str:
        """Text of a token range on one line."""
        if first >= last:
            return ""
        text = self.text[self.tokens[first].span.start : self.tokens[last - 1].span.end]
        text = re.sub(r"^[ \t]*#[^\n]*$", "", text, flags=re.MULTILINE)
        return re.sub(r"\s+", " ", text).strip()

    def span(self, first: int, last: int) -> Span:
        return Span(self.tokens[first].span.start, self.tokens[last - 1].span.end)

    def matching(self, index: int) -> int:
        """Index of the token that closes the bracket at `index`."""
        opener = self.tokens[index].text
        angle = opener == "<"
        stack: list[str] = []
        for i in range(index, len(self.tokens)):
            text = self.tokens[i].text
            if text in ("(", "[", "{") or (
                text == "<" and angle and stack in ([], [">"] * len(stack))
            ):
                stack.append(_CLOSERS[text])
            elif stack and text == stack[-1]:
                stack.pop()
                if not stack:
                    return i
            elif text in (")", "]", "}"):
                break
        raise self.error(index, f"unbalanced '{opener}'")

    def split(self, first: int, last: int) -> list[tuple[int, int]]:
        """Split a token range at its top-level commas."""
        parts, start, i = [], first, first
        while i < last:
            text = self.tokens[i].text
            if text in ("(", "[", "{", "<"):
                i = self.matching(i)
            elif text == ",":
                parts.append((start, i))
                start = i + 1
            i += 1
        if start < last:
            parts.append((start, last))
        return parts

    def string(self, first: int, last: int) -> str:
        """Value of adjacent string literals."""
        if first >= last or any(self.tokens[i].kind != "string" for i in range(first, last)):
            raise self.error(first, f"expected a string, found '{self.source(first, last)}'")
        return "".join(self.tokens[i].text[1:-1] for i in range(first, last))

    def attribute_end(self, index: int) -> int:
        """One past the `]]` of the attribute list at `index`, or `index` if there is none."""
        if not self.is_at(index, "[", "["):
            return index
        return self.matching(index) + 1

    def attributes(self, index: int) -> list[Attribute]:
        """Entries of the attribute list at `index`."""
        entries = []
        for first, last in self.split(index + 2, self.attribute_end(index) - 2):
            argument = None
            if last - first > 1:
                if not self.is_at(first + 1, "(") or self.matching(first + 1) != last - 1:
                    raise self.error(
                        first, f"cannot parse the attribute [[{self.source(first, last)}]]"
                    )
                if self.tokens[first].text == "host_name":
                    argument = self.string(first + 2, last - 1)
                else:
                    argument = self.source(first + 2, last - 1)
            entries.append(Attribute(self.tokens[first].text, argument, self.location(first)))
        return entries

    # The file: a sequence of declarations, each ending with `;` or a braced block.

    def parse(self) -> Program:
        self.reject_unsupported()
        start = i = 0
        while i < len(self.tokens):
            text = self.tokens[i].text
            if text in ("(", "["):
                i = self.matching(i)
            elif text == ";":
                self.declaration(start, i + 1)
                start = i + 1
            elif text == "{":
                end = self.matching(i)
                if self.is_kernel(start, i):
                    self.kernel(start, i, end + 1)
                    start = end + 1
                elif self.is_function_body(i):
                    self.reject_kernels(i, end)
                    self.reject_threadgroup_variables(i, end)
                    start = end + 1
                else:  # a type, namespace or initializer; what follows `}` may belong to it
                    self.reject_kernels(i, end)
                    self.reject_threadgroup_variables(i, end)
                    if self.tokens[start].text in ("namespace", "extern"):
                        start = end + 1
                i = end
            i += 1
        self.check_names()
        return self.program

    def is_function_body(self, brace: int) -> bool:
        return self.is_at(brace - 1, ")") or self.is_at(brace - 1, "const")

    def is_kernel(self, first: int, last: int) -> bool:
        i = first
        while i < last:
            if self.is_at(i, "kernel"):
                return True
            end = self.attribute_end(i)
            if end > i:
                if any(a.name == "kernel" for a in self.attributes(i)):
                    return True
                i = end
            elif self.tokens[i].text in ("(", "["):
                i = self.matching(i) + 1
            else:
                i += 1
        return False

    def reject_unsupported(self) -> None:
        for pragma in _METAL_PRAGMA.finditer(self.text):
            if not _KNOWN_PRAGMA.fullmatch(pragma[0]):
                text = pragma[0].strip()
                raise TranslationError(self.lines.at(pragma.start()), f"'{text}' is not supported")
        for i, token in enumerate(self.tokens):
            if token.kind == "word":
                reason = _REJECTED_WORDS.get(token.text)
                for prefix, text in _REJECTED_PREFIXES.items():
                    if token.text.startswith(prefix):
                        reason = text
                if reason:
                    raise self.error(i, f"'{token.text}': {reason}")
            elif token.text == "[" and self.is_lambda(i):
                raise self.error(i, "MSL has no lambda expressions")

    def is_lambda(self, index: int) -> bool:
        if index == 0 or self.is_at(index, "[", "[") or self.is_at(index - 1, "["):
            return False
        before = self.tokens[index - 1]
        if before.kind in ("word", "string") and before.text != "return":
            return False
        return before.text not in (")", "]", ">", "}")

    def reject_kernels(self, first: int, last: int) -> None:
        for i in range(first, last):
            if self.is_at(i, "kernel"):
                raise self.error(i, "a kernel inside a namespace or type is not supported")

    def reject_threadgroup_variables(self, first: int, last: int) -> None:
        found = next(self.threadgroup_statements(first, last), None)
        if found is not None:
            raise self.error(found[0], "threadgroup variables may only be declared in a kernel")

    # Declarations that end with a semicolon: instantiations and function constants.

    def declaration(self, first: int, last: int) -> None:
        if self.is_at(first, "template") and not self.is_at(first + 1, "<"):
            self.instantiation(first, last)
            return
        if self.is_kernel(first, last):
            raise self.error(first, "a kernel without a body is not supported")
        for i in range(first, last):
            if self.is_at(i, "[", "[") and any(
                a.name == "function_constant" for a in self.attributes(i)
            ):
                self.function_constant(first, i, last)
                return
        if self.is_at(first, "constant"):
            self.derived_constant(first, last)

    def instantiation(self, first: int, last: int) -> None:
        host_name = None
        i = first + 1
        is_kernel = False
        while True:
            end = self.attribute_end(i)
            if end > i:
                for attribute in self.attributes(i):
                    if attribute.name == "host_name":
                        host_name = attribute.argument
                    elif attribute.name == "kernel":
                        is_kernel = True
                    elif attribute.name != "max_total_threads_per_threadgroup":
                        raise self.error(i, f"attribute [[{attribute.name}]] is not supported here")
                i = end
            elif self.is_at(i, "kernel"):
                is_kernel = True
                i += 1
            else:
                break
        if not is_kernel:
            return  # an ordinary explicit instantiation, valid C++ as it stands
        if host_name is None:
            raise self.error(first, 'an explicit instantiation needs [[host_name("...")]]')
        if self.is_at(i, "decltype"):
            i = self.matching(i + 1) + 1
        elif self.is_at(i, "void"):
            i += 1
        else:
            raise self.error(i, "cannot parse this explicit instantiation")
        if self.tokens[i].kind != "word" or not self.is_at(i + 1, "<"):
            raise self.error(i, "an explicit instantiation must spell out its template arguments")
        close = self.matching(i + 1)
        self.program.instantiations.append(
            Instantiation(
                host_name=host_name,
                kernel=self.tokens[i].text,
                arguments=self.source(i + 2, close),
                location=self.location(first),
                span=self.span(first, last),
            )
        )

    def function_constant(self, first: int, attribute: int, last: int) -> None:
        if not self.is_at(first, "constant"):
            raise self.error(first, "a function constant must be declared `constant`")
        if self.attribute_end(attribute) != last - 1:
            raise self.error(first, "a function constant takes no initializer")
        index = self.attributes(attribute)[0].argument
        if index is None:
            raise self.error(attribute, "[[function_constant]] needs an index")
        self.program.function_constants.append(
            FunctionConstant(
                type=self.source(first + 1, attribute - 1),
                name=self.tokens[attribute - 1].text,
                index=index,
                location=self.location(first),
                span=self.span(first, last),
            )
        )

    def derived_constant(self, first: int, last: int) -> None:
        equals = next((i for i in range(first, last) if self.is_at(i, "=")), last)
        constants = (*self.program.function_constants, *self.program.derived_constants)
        names = {constant.name for constant in constants}
        if not any(token.text in names for token in self.tokens[equals:last]):
            return  # an ordinary constant
        if self.tokens[equals - 1].kind != "word" or self.is_at(equals + 1, "{"):
            raise self.error(
                first, "an array or struct made of function constants is not supported"
            )
        self.program.derived_constants.append(
            DerivedConstant(
                type=self.source(first + 1, equals - 1),
                name=self.tokens[equals - 1].text,
                initializer=self.source(equals + 1, last - 1),
                span=self.span(first, last),
            )
        )

    # Kernels.

    def kernel(self, first: int, brace: int, last: int) -> None:
        template_parameters: tuple[TemplateParameter, ...] = ()
        i = first
        if self.is_at(i, "template"):
            close = self.matching(i + 1)
            template_parameters = tuple(
                self.template_parameter(a, b) for a, b in self.split(i + 2, close)
            )
            i = close + 1
        host_name = max_threads = None
        removable = []
        while not self.is_at(i, "void"):
            end = self.attribute_end(i)
            if end > i:
                for attribute in self.attributes(i):
                    if attribute.name == "host_name":
                        host_name = attribute.argument
                    elif attribute.name == "max_total_threads_per_threadgroup":
                        max_threads = attribute.argument
                    elif attribute.name != "kernel":
                        raise self.error(
                            i, f"kernel attribute [[{attribute.name}]] is not supported"
                        )
                removable.append(self.span(i, end))
                i = end
            elif self.is_at(i, "kernel"):
                removable.append(self.span(i, i + 1))
                i += 1
            else:
                raise self.error(i, f"unexpected '{self.tokens[i].text}' before a kernel's `void`")
        name = i + 1
        if self.tokens[name].kind != "word" or not self.is_at(name + 1, "("):
            raise self.error(i, "cannot parse this kernel")
        close = self.matching(name + 1)
        if close != brace - 1:
            raise self.error(close, "unexpected text between a kernel's parameters and its body")
        self.program.kernels.append(
            Kernel(
                name=self.tokens[name].text,
                host_name=host_name,
                template_parameters=template_parameters,
                parameters=tuple(self.parameter(a, b) for a, b in self.split(name + 2, close)),
                max_threads=max_threads,
                threadgroup_declarations=tuple(self.threadgroup_declarations(brace, last)),
                location=self.location(name),
                head=self.span(first, brace),
                body=self.span(brace, last),
                removable=tuple(removable),
            )
        )

    def template_parameter(self, first: int, last: int) -> TemplateParameter:
        end = next((i for i in range(first, last) if self.is_at(i, "=")), last)
        if any(self.is_at(i, ".", ".", ".") for i in range(first, last)):
            raise self.error(first, "template parameter packs of kernels are not supported")
        if end - first < 2 or self.tokens[end - 1].kind != "word":
            raise self.error(first, "a kernel's template parameters need names")
        return TemplateParameter(self.source(first, last), self.tokens[end - 1].text)

    def parameter(self, first: int, last: int) -> Parameter:
        attributes: list[Attribute] = []
        spans = []
        words = []  # token indices outside attributes
        i = first
        while i < last:
            end = self.attribute_end(i)
            if end > i:
                attributes += self.attributes(i)
                spans.append(self.span(i, end))
                i = end
            else:
                words.append(i)
                i += 1
        if len(words) < 2 or self.tokens[words[-1]].kind != "word":
            raise self.error(first, f"cannot parse the parameter '{self.source(first, last)}'")
        type_text = self.source(words[0], words[-1])
        name = self.tokens[words[-1]].text
        kind = index = condition = None
        for attribute in attributes:
            if attribute.name == "function_constant":
                condition = attribute.argument
            elif kind is not None:
                raise self.error(first, f"parameter '{name}' has more than one binding")
            elif attribute.name in ("buffer", "threadgroup"):
                kind, index = attribute.name, attribute.argument
                if index is None:
                    raise self.error(first, f"[[{kind}]] of parameter '{name}' needs an index")
            elif attribute.name in BUILTIN_ARGUMENTS:
                kind = attribute.name
            else:
                raise self.error(
                    first, f"parameter attribute [[{attribute.name}]] is not supported"
                )
        if kind is None:
            raise self.error(first, f"parameter '{name}' has no [[buffer(n)]] or other binding")
        self.check_parameter_type(first, type_text, name, kind)
        return Parameter(
            type=type_text,
            name=name,
            kind=kind,
            index=index,
            condition=condition,
            location=self.location(words[-1]),
            attribute_spans=tuple(spans),
        )

    def check_parameter_type(self, first: int, type_text: str, name: str, kind: str) -> None:
        words = re.findall(r"\w+", type_text)
        indirect = type_text.rstrip().endswith(("*", "&"))
        if kind == "buffer" and not (indirect and {"device", "constant"} & set(words)):
            raise self.error(
                first,
                f"buffer parameter '{name}' must be a pointer or reference to device or constant",
            )
        if kind == "threadgroup" and not (indirect and "threadgroup" in words):
            raise self.error(first, f"parameter '{name}' must be a pointer to threadgroup")
        if kind in BUILTIN_ARGUMENTS:
            match = re.fullmatch(
                r"(?:const )?(?:uint|ushort|uint32_t|uint16_t)([23]?)(?: const)?", type_text
            )
            if match is None or (match[1] and not BUILTIN_ARGUMENTS[kind]):
                raise self.error(first, f"[[{kind}]] cannot have type '{type_text}'")

    # Threadgroup variables: statements of a kernel's outermost block.

    def threadgroup_statements(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(first token, one past the semicolon, brace depth) of each variable declaration."""
        depth = 0
        for i in range(first, last):
            text = self.tokens[i].text
            depth += (text == "{") - (text == "}")
            if text != "threadgroup" or self.tokens[i - 1].text not in (";", "{", "}", ":"):
                continue
            end = next(j for j in range(i, last + 1) if self.is_at(j, ";"))
            if not self.declares_pointer(i, end):
                yield i, end + 1, depth

    def declares_pointer(self, first: int, last: int) -> bool:
        i = first
        while i < last and not self.is_at(i, "="):
            if self.tokens[i].text in ("*", "&"):
                return True
            i = self.matching(i) + 1 if self.tokens[i].text in ("<", "[", "(") else i + 1
        return False

    def threadgroup_declarations(self, first: int, last: int) -> Iterator[ThreadgroupDeclaration]:
        for start, end, depth in self.threadgroup_statements(first, last):
            if depth != 1:
                raise self.error(
                    start, "a threadgroup variable must be declared in the kernel's outermost block"
                )
            variables = []
            base_type = None
            for a, b in self.split(start + 1, end - 1):
                if any(self.is_at(i, "=") for i in range(a, b)):
                    raise self.error(a, "a threadgroup variable cannot have an initializer")
                extents = next((i for i in range(a, b) if self.is_at(i, "[")), b)
                if base_type is None:
                    base_type = self.source(a, extents - 1)
                variables.append(
                    ThreadgroupVariable(
                        type=base_type,
                        name=self.tokens[extents - 1].text,
                        extents=self.source(extents, b),
                        location=self.location(extents - 1),
                    )
                )
            yield ThreadgroupDeclaration(tuple(variables), self.span(start, end))

    def check_names(self) -> None:
        kernels = {}
        for kernel in self.program.kernels:
            if kernel.name in kernels:
                raise TranslationError(kernel.location, f"kernel '{kernel.name}' is overloaded")
            kernels[kernel.name] = kernel
        for instantiation in self.program.instantiations:
            kernel = kernels.get(instantiation.kernel)
            if kernel is None or not kernel.is_template:
                raise TranslationError(
                    instantiation.location, f"there is no kernel template '{instantiation.kernel}'"
                )
        seen: dict[str, Location] = {}
        for host_name, kernel, _ in self.program.entry_points():
            if host_name in seen:
                raise TranslationError(
                    kernel.location, f"two kernels have the host name '{host_name}'"
                )
            seen[host_name] = kernel.location
