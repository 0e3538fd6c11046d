"""The formulas of docstrings as MathML, which browsers set without a script or a font of ours.

A formula is lines of Python: `term = term`, perhaps with a comment. Calls of `sqrt`, `rsqrt`, `sum`
and `norm` become what mathematics writes for them; what it has no sign for keeps its name.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

GREEK = {"eps": "ε", "gamma": "γ", "alpha": "α", "beta": "β", "pi": "π"}
SUM, PRODUCT, SIGN, POWER, ATOM = range(5)  # how tightly a term binds


def element(tag: str, *children: Element | str, **attributes: str) -> Element:
    made = Element(tag, attributes)
    for child in children:
        if isinstance(child, str):
            made.text = child
        else:
            made.append(child)
    return made


def row(*children: Element) -> Element:
    return element("mrow", *children)


def sign(text: str, **attributes: str) -> Element:
    return element("mo", text, **attributes)


def fenced(inner: Element, left: str = "(", right: str = ")") -> Element:
    """As tall as what is inside only around a fraction: fonts without tall signs stretch poorly."""
    stretchy = str(inner.find(".//mfrac") is not None).lower()
    return row(sign(left, stretchy=stretchy), inner, sign(right, stretchy=stretchy))


def name(text: str) -> Element:
    """`x`, `ε`, `y0` and `out_a` with what follows as an index, `weight_offset` as it is."""
    stem, _, index = text.rpartition("_")
    if not stem and text[-1].isdigit():
        stem, index = text[:-1], text[-1]
    if stem and len(index) == 1:
        return element("msub", name(stem), element("mn" if index.isdigit() else "mi", index))
    return element("mi", GREEK.get(text, text))


def separated(terms: Iterable[ast.expr]) -> Element:
    made = row()
    for term in terms:
        if len(made):
            made.append(sign(",", rspace="0.4em"))
        made.append(set_as(term))
    return made


def root(argument: ast.expr) -> Element:
    return element("msqrt", set_as(argument))


def total(argument: ast.expr) -> Element:
    """`sum(term for k in range(n))`."""
    if not isinstance(argument, ast.GeneratorExp):
        return row(sign("∑"), set_as(argument, PRODUCT))
    (loop,) = argument.generators
    under = element("munder", sign("∑", movablelimits="false"), set_as(loop.target))
    return row(under, set_as(argument.elt, PRODUCT))


def norm(argument: ast.expr) -> Element:
    return fenced(set_as(argument), "‖", "‖")


CALLS: dict[str, Callable[[ast.expr], Element]] = {"sqrt": root, "sum": total, "norm": norm}


def called(call: ast.Call) -> tuple[Element, int]:
    assert isinstance(call.func, ast.Name) and not call.keywords, ast.unparse(call)
    function = call.func.id
    if function == "rsqrt":
        return element("mfrac", element("mn", "1"), root(call.args[0])), PRODUCT
    if function in CALLS:
        (argument,) = call.args
        return CALLS[function](argument), PRODUCT if function == "sum" else ATOM
    return row(name(function), sign("\u2061"), fenced(separated(call.args))), ATOM


def binary(operation: ast.BinOp) -> tuple[Element, int]:
    left, right = operation.left, operation.right
    match operation.op:
        case ast.Add():
            return row(set_as(left, SUM), sign("+"), set_as(right, SUM)), SUM
        case ast.Sub():
            return row(set_as(left, SUM), sign("−"), set_as(right, PRODUCT)), SUM
        case ast.Div():
            return element("mfrac", set_as(left), set_as(right)), PRODUCT
        case ast.Pow():
            return element("msup", set_as(left, ATOM), set_as(right)), POWER
        case ast.Mult():
            match right:
                case ast.Call(func=ast.Name(id="rsqrt"), args=[argument]):
                    return element("mfrac", set_as(left), root(argument)), PRODUCT
            return row(set_as(left, PRODUCT), sign("·"), set_as(right, PRODUCT)), PRODUCT
    raise NotImplementedError(ast.unparse(operation))


def bounds(index: ast.expr) -> Element:
    """What stands in brackets, on one line: `: r/2`, `k`; leading dimensions go without saying."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    shown = [part for part in parts if ast.unparse(part) not in ("...", ":")]
    return element("mtext", ", ".join(ast.unparse(part).replace(" ", "") for part in shown))


def parts(term: ast.expr) -> tuple[Element, int]:
    """A term, and how tightly it binds."""
    match term:
        case ast.Name(id=text):
            return name(text), ATOM
        case ast.Constant(value=value):
            return element("mi" if value is None else "mn", str(value)), ATOM
        case ast.Call():
            return called(term)
        case ast.BinOp():
            return binary(term)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return row(sign("−"), set_as(operand, SIGN)), SIGN
        case ast.Subscript(value=value, slice=index):
            return element("msub", set_as(value, ATOM), bounds(index)), ATOM
        case ast.Tuple(elts=elements):
            return fenced(separated(elements)), ATOM
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            cases = element("mtable", **{"class": "cases"})
            for value, condition in ((body, ast.unparse(test)), (otherwise, "")):
                said = f"if {condition}" if condition else "else"
                cells = (element("mtd", set_as(value)), element("mtd", element("mtext", said)))
                cases.append(element("mtr", *cells))
            return row(sign("{"), cases), SUM
    raise NotImplementedError(ast.unparse(term))


def set_as(term: ast.expr, tightness: int = SUM) -> Element:
    """In parentheses where it binds less tightly."""
    inner, binds = parts(term)
    return inner if binds >= tightness else fenced(inner)


def parsed(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def mathml(formula: str) -> str:
    """One `<math>`, a row for each line."""
    table = element("mtable")
    for line in formula.splitlines():
        equation, _, comment = line.partition("# ")
        left, _, right = equation.partition("=")
        cells = [set_as(parsed(left)), sign("="), set_as(parsed(right))]
        cells += [element("mtext", comment)] if comment else []
        table.append(element("mtr", *(element("mtd", cell) for cell in cells)))
    made = element("math", table, display="block", alttext=formula)
    return ElementTree.tostring(made, encoding="unicode")
