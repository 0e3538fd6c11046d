"""Rules of Metal that clang's C++ for OpenCL does not have, checked on clang's syntax tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Node = dict[str, Any]

_DECLARATIONS = {
    "VarDecl": "variable",
    "ParmVarDecl": "parameter",
    "FieldDecl": "member",
    "TypedefDecl": "type",
    "TypeAliasDecl": "type",
}
_FUNCTIONS = ("FunctionDecl", "CXXMethodDecl", "CXXConversionDecl", "CXXConstructorDecl")
_CASTS = ("CStyleCastExpr", "CXXStaticCastExpr", "CXXReinterpretCastExpr", "CXXFunctionalCastExpr")


def _type(node: Node) -> str:
    return node.get("type", {}).get("qualType", "")


def _plain_type(node: Node) -> str:
    return re.sub(r"\b(const|__private|__global|__local|__constant) ", "", _type(node))


def _is_struct(initializers: Node) -> bool:
    kind = _type(initializers)  # of a template as it is written: void
    return "[" not in kind and "*" not in kind and kind != "void"


def _holds_pointers(initializers: Node) -> bool:
    for child in initializers.get("inner", ()):
        if "*" in _type(child):
            return True
        if child.get("kind") == "InitListExpr" and _holds_pointers(child):
            return True
    return False


class SyntaxTree:
    """Walks the JSON of `-ast-dump=json` in its order, because a location is only written where it
    differs from the one before."""

    def __init__(self, root: Node, origins: list[str]) -> None:
        self._origins = origins  # of the lines of standard input
        self._line = 0
        self.errors: list[str] = []
        self._calls: dict[str, set[str]] = {}
        self._functions: dict[str, tuple[str, str]] = {}  # id: location, name
        self._first: dict[str, str] = {}  # of the declarations of one function, by id
        self._visit(root, None)
        self._recursion()
        # Templates appear once as written and once for each instantiation.
        self.errors = list(dict.fromkeys(self.errors))

    def _advance(self, location: Node) -> None:
        for part in (location.get("spellingLoc"), location.get("expansionLoc"), location):
            if part:
                self._line = part.get("line", self._line)

    def _position(self, node: Node) -> str:
        extent = node.get("range", {})
        places = [extent.get("begin", {}), extent.get("end", {})]
        if "loc" in node:  # a declaration; an expression begins where its range does
            places.insert(0, node["loc"])
        self._advance(places[0])
        # Of lines in msl.h the number means nothing, but nothing is reported there.
        position = self._origins[min(self._line, len(self._origins)) - 1]
        for place in places[1:]:
            self._advance(place)
        return position

    def _visit(self, node: Node, function: str | None, implicit: bool = False) -> None:
        position = self._position(node)
        kind = node.get("kind", "")
        # Defaulted functions are those of MSL_STRUCT.
        implicit = implicit or "isImplicit" in node or "explicitlyDefaulted" in node
        if kind in _FUNCTIONS:
            previous = node.get("previousDecl", node["id"])
            function = self._first[node["id"]] = self._first.get(previous, previous)
            self._functions[function] = (position, node.get("name", ""))
        if kind == "LambdaExpr":
            self.errors.append(f"{position}: error: Metal has no lambdas")
        elif node.get("bases"):
            self.errors.append(
                f"{position}: error: Metal has no derived classes ('{node.get('name', '')}')"
            )
        elif kind in _DECLARATIONS and not implicit:
            self._address_space(node, _DECLARATIONS[kind], position)
        elif kind in _FUNCTIONS and not implicit:
            self._address_space(node, "result of function", position, result=True)
        elif kind in _CASTS:
            self._address_space(node, "cast", position)
        elif kind == "InitListExpr" and _is_struct(node) and _holds_pointers(node):
            self.errors.append(
                f"{position}: error: an initializer list of '{_plain_type(node)}', which holds "
                "pointers; set its members one by one"
            )
        for callee in self._references(node):
            if function is not None:
                self._calls.setdefault(function, set()).add(self._first.get(callee, callee))
        for child in node.get("inner", ()):
            self._visit(child, function, implicit and kind in _FUNCTIONS)

    def _address_space(self, node: Node, what: str, position: str, *, result: bool = False) -> None:
        kind = node.get("type", {}).get("qualType", "")
        if result:
            kind = kind.partition("(")[0]
        # What names no address space is "generic" to OpenCL.
        if "__generic" in kind:
            self.errors.append(
                f"{position}: error: {what} '{node.get('name', '')}' points or refers to memory "
                f"without naming its address space ({kind.strip()})"
            )

    @staticmethod
    def _references(node: Node) -> Iterator[str]:
        if node.get("kind") == "DeclRefExpr":
            yield node.get("referencedDecl", {}).get("id", "")
        elif node.get("kind") == "MemberExpr":
            yield node.get("referencedMemberDecl", "")

    def _recursion(self) -> None:
        for start, (position, name) in self._functions.items():
            reached: set[str] = set()
            pending = list(self._calls.get(start, ()))
            while pending:
                function = pending.pop()
                if function == start:
                    self.errors.append(f"{position}: error: Metal has no recursion ('{name}')")
                    break
                if function not in reached:
                    reached.add(function)
                    pending += self._calls.get(function, ())
