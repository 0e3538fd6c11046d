"""Rewrites exports/ from PyTorch's macOS wheels; run `python -m cross_compile.update_exports` in
tests/ after a new PyTorch release, or when the extension needs a symbol that no list names yet.

With --check it writes nothing and proves more than the tests do: each version's own headers, and
all that its libraries export. The wheels (110 MB each) are kept in .cache/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from . import compile_all, wheels
from .product import product_sources
from .symbols import demangle, missing, undefined_symbols, write_exports


def handle(version: str, folder: Path, check: bool) -> bool:
    exports = wheels.exports(version)
    outcomes = compile_all(product_sources(folder), folder, wheels.headers(version))
    failed = [outcome for outcome in outcomes if outcome.object is None]
    for outcome in failed:
        print(f"torch {version}: {outcome.source.path.name}\n{outcome.diagnostics}")
    objects = [outcome.object for outcome in outcomes if outcome.object is not None]
    absent = {} if failed else missing(objects, exports)
    for name, users in sorted(absent.items()):
        print(f"torch {version}: {', '.join(users)} need {demangle(name)}, which is not exported")
    print(f"torch {version}: {len(objects)} of {len(outcomes)} files compiled", end=", ")
    if check:
        print(f"{len(absent)} symbols missing")
    else:
        needed = set().union(*map(undefined_symbols, objects)) if objects else set()
        print(f"{write_exports(version, exports, needed)} of {len(exports)} exports kept")
    return not failed and not absent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    parser.add_argument("versions", nargs="*", default=wheels.VERSIONS)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    good = True
    for version in arguments.versions:
        with tempfile.TemporaryDirectory() as folder:
            good &= handle(version, Path(folder), arguments.check)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
