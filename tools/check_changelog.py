"""Whether CHANGELOG.md tells of every name of the public interface that is new, gone or has another
signature since the last tag. Without a tag everything is new.

Names are those of each `__all__` within the package; signatures are read from the source, so that
a tag need not be built.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "torch_mlxnorm"
Read = Callable[[str], str]  # of a file by its path; FileNotFoundError where there is none
Api = dict[str, str]  # signatures by name


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """What a module defines or imports, by name, for type checkers as well."""
    found: dict[str, ast.stmt] = {}
    conditional = [
        node for branch in tree.body if isinstance(branch, ast.If) for node in branch.body
    ]
    for node in [*tree.body, *conditional]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
    return found


def exported(tree: ast.Module) -> list[str]:
    match definitions(tree).get("__all__"):
        case ast.Assign(value=value):
            return list(ast.literal_eval(value))
    return []


def signature(node: ast.stmt) -> str:
    """Without bodies, defaults as they are written."""
    match node:
        case ast.FunctionDef():
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            return f"({ast.unparse(node.args)}){returns}"
        case ast.ClassDef():
            public = [
                f"{item.name}{signature(item)}"
                for item in node.body
                if isinstance(item, ast.FunctionDef)
                and (item.name == "__init__" or not item.name.startswith("_"))
            ]
            fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
            return "; ".join([", ".join(map(ast.unparse, node.bases)), *fields, *public])
    return ast.unparse(node)


def resolve(read: Read, module: str, name: str) -> str:
    """The signature of a name, through the modules that it is imported from."""
    path = module.replace(".", "/")
    try:
        text = read(f"{path}.py")
    except FileNotFoundError:
        text = read(f"{path}/__init__.py")
    node = definitions(ast.parse(text)).get(name)
    if node is None:
        raise LookupError(f"{module} exports {name}, which is not defined there")
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
        original = {alias.asname or alias.name: alias.name for alias in node.names}[name]
        return resolve(read, str(node.module), original)
    return signature(node)


def public_api(files: Iterable[str], read: Read) -> Api:
    """Of the Python files of a tree."""
    api: Api = {}
    for file in sorted(files):
        path = PurePosixPath(file)
        parts = path.with_suffix("").parts
        if path.suffix != ".py" or parts[0] != PACKAGE:
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for name in exported(ast.parse(read(file))):
            if not name.startswith("__"):
                api[f"{module}.{name}"] = resolve(read, module, name)
    return api


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """What became of names: new, gone or changed."""
    found = {name: "is new" for name in after if name not in before}
    found |= {name: "is gone" for name in before if name not in after}
    both = before.keys() & after.keys()
    return found | {name: "has changed" for name in both if before[name] != after[name]}


def untold(found: Mapping[str, str], section: str) -> list[str]:
    """Complaints about names that a section of the changelog does not have in backticks."""
    code = " ".join(re.findall(r"`([^`]+)`", section))
    said = set(re.findall(r"\w+", code))
    return [
        f"{name} {what}, and CHANGELOG.md does not say so"
        for name, what in sorted(found.items())
        if name.rpartition(".")[2] not in said
    ]


def newest_section(changelog: str) -> tuple[str, str]:
    """Its version and text."""
    match = re.search(r"^## (\S+)[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if match is None:
        raise ValueError("CHANGELOG.md has no section")
    return match[1], match[2]


def git(*arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode != 0:
        raise FileNotFoundError(run.stderr.strip())
    return run.stdout


def main() -> int:
    files = git("ls-files", PACKAGE).splitlines()
    after = public_api(files, lambda path: (ROOT / path).read_text())
    try:
        tag = git("describe", "--tags", "--abbrev=0", "--match", "v*").strip()
    except FileNotFoundError:
        tag, before = "", {}
    else:
        then = git("ls-tree", "-r", "--name-only", tag, PACKAGE).splitlines()
        before = public_api(then, lambda path: git("show", f"{tag}:{path}"))
    version, section = newest_section((ROOT / "CHANGELOG.md").read_text())
    found = changes(before, after)
    faults = untold(found, section)
    current = resolve(lambda path: (ROOT / path).read_text(), f"{PACKAGE}._version", "__version__")
    if current != f"__version__ = {version!r}":
        faults.append(f"the newest section of CHANGELOG.md is of {version}, the package {current}")
    print("\n".join(faults))
    since = f"since {tag}" if tag else "there is no tag: everything is new"
    print(f"{len(found)} of {len(after)} public names, {since}; {len(faults)} untold")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
