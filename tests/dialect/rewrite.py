"""Turns what Metal spells in its own way into C++ for OpenCL, keeping every line where it was.

The input has its macros expanded and carries `# line "file"` marks. Everything that both languages
share is left alone, so that clang judges it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r'(?P<mark>^[ \t]*\#[^\n]*)|(?P<space>\s+)|(?P<string>"(?:[^"\\\n]|\\.)*")'
    r"|(?P<word>[A-Za-z_]\w*)|(?P<number>\.?\d[\w.]*)|(?P<open_attribute>\[\[)|(?P<other>.)",
    re.MULTILINE,
)
_LINE_MARK = re.compile(r'\s*#\s*(?:line\s+)?(\d+)\s+"([^"]*)"')
_METAL_PRAGMA = re.compile(
    r"^[ \t]*\#[ \t]*pragma[ \t]+METAL[ \t]+fp[ \t]+"
    r"(?:contract\((?:off|on|fast)\)|math_mode\((?:safe|relaxed|fast)\))[ \t]*$",
    re.MULTILINE,
)
_VECTOR = re.compile(r"(?:u?char|u?short|u?int|u?long|half|b?float)[234]")
_BEFORE_CONSTRUCTOR = {"{", "}", ";", ":", ">", "inline", "explicit", "constexpr"}
_PAIRS = {"(": ")", "[": "]", "{": "}"}

ATTRIBUTES = {
    *("kernel", "host_name", "max_total_threads_per_threadgroup", "function_constant"),
    *("buffer", "threadgroup", "unroll", "maybe_unused", "fallthrough"),
    *("thread_position_in_grid", "thread_position_in_threadgroup"),
    *("thread_index_in_threadgroup", "thread_index_in_simdgroup"),
    *("thread_execution_width", "threads_per_simdgroup", "threads_per_grid"),
    *("threads_per_threadgroup", "threadgroup_position_in_grid", "threadgroups_per_grid"),
    *("simdgroup_index_in_threadgroup", "simdgroups_per_threadgroup"),
    *("dispatch_threads_per_threadgroup", "grid_size"),
}


@dataclass(frozen=True)
class Token:
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def _tokens(text: str) -> list[Token]:
    found = _TOKEN.finditer(text)
    return [Token(m[0], m.start()) for m in found if m.lastgroup not in ("mark", "space")]


def origins(text: str) -> list[str]:
    """`file:line` that every line of a marked text comes from."""
    found = []
    name, number = "<unknown>", 0
    for line in text.splitlines():
        mark = _LINE_MARK.match(line)
        number = int(mark[1]) - 1 if mark else number + 1
        name = mark[2] if mark else name
        found.append(f"{name}:{number}")
    return found


class Rewriter:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.origins = origins(text)
        self.edits: list[tuple[int, int, str]] = []  # from, to, replacement
        self.errors: list[str] = []

    def run(self) -> str:
        self._pragmas()
        self._attributes()
        self._vectors()
        self._structs()
        self._kernels()
        text = self.text
        for start, end, replacement in reversed(self._final_edits()):
            newlines = "\n" * text.count("\n", start, end)
            text = text[:start] + replacement + newlines + text[end:]
        return text

    def _final_edits(self) -> list[tuple[int, int, str]]:
        """In the order of the text, and where they meet in the order in which they were made;
        without what would be inserted into text that is replaced."""
        replaced = [(start, end) for start, end, _ in self.edits if start < end]
        edits = [
            (start, end, text)
            for start, end, text in self.edits
            if start < end or not any(a < start < b for a, b in replaced)
        ]
        return sorted(edits, key=lambda edit: edit[:2])

    # ---- reading ----------------------------------------------------------------------------

    def _at(self, index: int) -> str:
        return self.tokens[index].text if 0 <= index < len(self.tokens) else ""

    def _source(self, first: int, last: int) -> str:
        """The text of tokens [first, last)."""
        return self.text[self.tokens[first].start : self.tokens[last - 1].end]

    def _closing(self, index: int) -> int:
        """The index of the bracket that closes the one at `index`."""
        stack = []
        for i in range(index, len(self.tokens)):
            for character in "[[" if self._at(i) == "[[" else [self._at(i)]:
                if character in _PAIRS:
                    stack.append(_PAIRS[character])
                elif stack and character == stack[-1]:
                    stack.pop()
            if not stack:
                return i
        return len(self.tokens) - 1

    def _where(self, index: int) -> str:
        return self.origins[self.text.count("\n", 0, self.tokens[index].start)]

    def _attribute_lists(self) -> Iterator[tuple[int, int]]:
        for i, token in enumerate(self.tokens):
            if token.text == "[[":
                yield i, self._closing(i)

    def _statement_start(self, index: int) -> int:
        while index > 0 and self._at(index - 1) not in (";", "{", "}"):
            index -= 1
        return index

    # ---- rewriting --------------------------------------------------------------------------

    def _pragmas(self) -> None:
        """clang has a pragma that is allowed in the same places. It does not know any other of
        Metal's, and says so."""
        for pragma in _METAL_PRAGMA.finditer(self.text):
            self.edits.append((*pragma.span(), "#pragma clang fp contract(off)"))

    def _attributes(self) -> None:
        for first, last in self._attribute_lists():
            i = first + 1
            while i < last - 1:
                name = self._at(i)
                if name not in ATTRIBUTES:
                    self.errors.append(
                        f"{self._where(i)}: error: Metal has no attribute [[{name}]]"
                    )
                if name == "function_constant" and self._at(last + 1) == ";":  # no parameter
                    self._insert(self._statement_start(first), "extern ")
                i += 1
                if self._at(i) == "(":
                    self._attribute_argument(name, i + 1, self._closing(i))
                    i = self._closing(i) + 1
                if self._at(i) == ",":
                    i += 1
            self.edits.append((self.tokens[first].start, self.tokens[last].end, ""))

    def _attribute_argument(self, name: str, first: int, last: int) -> None:
        """Compilers differ in what they evaluate there: a literal or a name is sure to work."""
        tokens = [self._at(i) for i in range(first, last)]
        strings = all(token.startswith('"') for token in tokens)
        if len(tokens) != 1 and not strings:
            self.errors.append(
                f"{self._where(first)}: error: the argument of [[{name}]] must be a number or a "
                f"name, not an expression ({self._source(first, last)})"
            )

    def _vectors(self) -> None:
        for i, token in enumerate(self.tokens):
            # float4 (&name)[2] declares; float4(…) constructs.
            if (
                _VECTOR.fullmatch(token.text)
                and self._at(i + 1) == "("
                and self._at(i + 2) not in ("&", "*")
            ):
                self.edits.append((token.start, token.start, "make_"))

    def _structs(self) -> None:
        for i, token in enumerate(self.tokens):
            if token.text != "struct" or not re.match(r"[A-Za-z_]", self._at(i + 1)):
                continue
            name = self._at(i + 1)
            j = i + 2
            while j < len(self.tokens) and self._at(j) not in ("{", ";", "(", ")", "=", "&", "*"):
                j += 1
            if self._at(j) == "{":
                constructors = self._member_functions(name, j + 1, self._closing(j))
                macro = "MSL_COPIES" if constructors else "MSL_STRUCT"
                self.edits.append((self.tokens[j].end, self.tokens[j].end, f" {macro}({name})"))

    def _member_functions(self, struct: str, first: int, last: int) -> bool:
        """An object is in `thread` memory, as far as its functions know, unless they say else. The
        result says whether there are constructors."""
        constructors = False
        i = start = first
        while i < last:
            text = self._at(i)
            if text == struct and self._at(i + 1) == "(" and self._at(i - 1) in _BEFORE_CONSTRUCTOR:
                constructors = True
                while i < last and self._at(i) not in (";", "{"):
                    i = self._closing(i) + 1
                text = self._at(i)
            elif text == "{" and self._at(i - 1) in (")", "const"):
                self._member_function(start, i)
            i = self._closing(i) + 1
            if text in (";", "{"):
                start = i
        return constructors

    def _member_function(self, start: int, brace: int) -> None:
        words = {self._at(i) for i in range(start, brace)}
        if words & {"static", "friend"}:
            return
        if "auto" in words:  # must be defined before it can be called
            self._insert(brace, "thread ")
            return
        # A temporary is in no address space for clang, so it has an overload of its own.
        head = " ".join(self._source(start, brace).split())
        self._insert(start, f"{head} &&; ")
        self._insert(brace, "thread & ")

    def _insert(self, index: int, text: str) -> None:
        start = self.tokens[index].start
        self.edits.append((start, start, text))

    def _kernels(self) -> None:
        attributes = list(self._attribute_lists())
        for i, token in enumerate(self.tokens):
            if token.text != "kernel":
                continue
            inside = next((last for first, last in attributes if first < i < last), None)
            if inside is None:  # the keyword `kernel`; OpenCL's forbids templates and references
                self.edits.append((token.start, token.end, ""))
            j = i if inside is None else inside + 1
            while j < len(self.tokens) and self._at(j) not in ("{", ";"):
                j = self._closing(j) + 1
            if self._at(j) == "{":
                self._threadgroup_variables(j + 1, self._closing(j))

    def _threadgroup_variables(self, first: int, last: int) -> None:
        """`threadgroup T name[n];` in the outermost block of a kernel becomes a reference: OpenCL
        would allow the variable itself only in kernels that are no templates."""
        i = first
        while i < last:
            end = i
            while end < last and self._at(end) not in (";", "{", "}"):
                end = self._closing(end) + 1
            if self._at(end) == "{":
                end = self._closing(end)
            elif self._at(i) == "threadgroup":
                self._threadgroup_variable(i, end)
            i = end + 1

    def _threadgroup_variable(self, first: int, end: int) -> None:
        if any(self._at(i) in ("*", "&", "=") for i in self._outside_brackets(first, end)):
            return  # a pointer to threadgroup memory, a variable like any other
        commas = [i for i in self._outside_brackets(first + 1, end) if self._at(i) == ","]
        starts, stops = [first + 1, *(i + 1 for i in commas)], [*commas, end]
        # The first declarator follows the type, and its name is the last word before any extent.
        extents = [i for i in self._outside_brackets(first + 1, stops[0]) if self._at(i) == "["]
        starts[0] = (extents[0] if extents else stops[0]) - 1
        base = self._source(first + 1, starts[0])
        references = []
        for start, stop in zip(starts, stops, strict=True):
            extent = self._source(start + 1, stop) if stop > start + 1 else ""
            references.append(
                f"threadgroup {base} (&{self._at(start)}){extent} = "
                f"msl_threadgroup_variable<{base}{extent}>();"
            )
        # The statement's own semicolon stays behind.
        self.edits.append(
            (self.tokens[first].start, self.tokens[end - 1].end, " ".join(references)[:-1])
        )

    def _outside_brackets(self, first: int, last: int) -> Iterator[int]:
        """Tokens in [first, last) that no bracket encloses; an opening bracket itself counts."""
        angles = 0
        i = first
        while i < last:
            if angles == 0:
                yield i
            angles += (self._at(i) == "<") - (self._at(i) == ">")
            i = self._closing(i) + 1


def to_opencl(text: str) -> tuple[str, list[str]]:
    """The rewritten source, and mistakes that only show before rewriting."""
    rewriter = Rewriter(text)
    return rewriter.run(), rewriter.errors
