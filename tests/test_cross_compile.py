"""The extension's sources compile for macOS and need only symbols that PyTorch exports there."""

from __future__ import annotations

import functools
import re
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from beside import PROCESSORS, beside, side_by_side

from tools import planted_mistake, require_module

require_module("ziglang", "PyPI ziglang")
require_module("lief", "PyPI lief")

from cross_compile import (  # noqa: E402
    CACHE,
    Outcome,
    Source,
    compile_all,
    compile_source,
    forbidden_includes,
    retain_count_warnings,
)
from cross_compile.product import CSRC, product_paths, product_sources  # noqa: E402
from cross_compile.symbols import (  # noqa: E402
    demangle,
    listed_versions,
    missing,
    read_exports,
    undefined_symbols,
)

TORCH_INCLUDE = Path(torch.__file__).parent / "include"
TORCH_VERSION = torch.__version__.partition("+")[0]
SELFTEST = Path(__file__).parent / "cross_compile" / "selftest"


def name_of(path: Path) -> str:
    return str(path.relative_to(CSRC))


def unresolved(objects: list[Path], version: str) -> list[str]:
    """Readable complaints about symbols that `version` of PyTorch does not offer."""
    # Other signatures may differ between the headers at hand and another version's;
    # update_exports --check compiles against each version's own.
    absent = missing(objects, read_exports(version), only_stable=version != TORCH_VERSION)
    return [
        f"{', '.join(users)}: torch {version} does not export {demangle(name)} ({name}); "
        "run update_exports if it does"
        for name, users in sorted(absent.items())
    ]


# ---- the extension -------------------------------------------------------------------------------


# Where it was the last time: zig remembers what it compiled by the command and what that read.
GENERATED = CACHE / "generated"
OBJECTS = tempfile.TemporaryDirectory()


_generating = threading.Lock()


@functools.cache
def _sources() -> list[Source]:
    return product_sources(GENERATED)


def sources() -> list[Source]:
    with _generating:
        return _sources()


@beside
def product() -> dict[Path, Outcome]:
    outcomes = compile_all(sources(), Path(OBJECTS.name), TORCH_INCLUDE, PROCESSORS)
    return {outcome.source.path: outcome for outcome in outcomes}


@beside
def unbalanced() -> dict[Path, list[str]]:
    """What is found about references in the .mm files."""
    metal = [s for s in sources() if s.path.suffix == ".mm"]
    found = side_by_side(lambda s: retain_count_warnings(s, TORCH_INCLUDE), metal)
    return dict(zip([source.path for source in metal], found, strict=True))


@pytest.mark.parametrize("path", product_paths(), ids=name_of)
def test_compiles_for_macos(path: Path, product: dict[Path, Outcome]) -> None:
    assert product[path].object is not None, product[path].diagnostics


@pytest.mark.parametrize("version", listed_versions())
def test_needs_only_exported_symbols(version: str, product: dict[Path, Outcome]) -> None:
    objects = [outcome.object for outcome in product.values() if outcome.object is not None]
    assert len(objects) == len(product), "not every file compiled"
    assert not unresolved(objects, version)


def test_exp_and_tanh_on_arm64_are_those_of_x86(product: dict[Path, Outcome]) -> None:
    """Sleef's, not libm's: setup.py has the macro that chooses, and product.py follows it."""
    assert "AT_BUILD_ARM_VEC256_WITH_SLEEF" in (CSRC.parent / "setup.py").read_text()
    needed = undefined_symbols(product[CSRC / "cpu/isa/rms_norm_add.cpp"].object)
    for function in ("exp", "tanh"):
        assert f"_Sleef_{function}f4_u10" in needed and f"_{function}f" not in needed


@pytest.mark.parametrize("path", sorted(CSRC.rglob("*.mm")), ids=name_of)
def test_retains_and_releases_balance(path: Path, unbalanced: dict[Path, list[str]]) -> None:
    assert not unbalanced[path]


def test_no_forbidden_header() -> None:
    files = [path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".mm")]
    assert not [found for path in files for found in forbidden_includes(path)]


# ---- the check itself: a correct file passes, planted mistakes are named -------------------------


def test_correct_file_passes(tmp_path: Path) -> None:
    source = Source(SELFTEST / "norm.mm")
    outcome = compile_source(source, tmp_path / "norm.o", TORCH_INCLUDE)
    assert outcome.object is not None, outcome.diagnostics
    assert not any(unresolved([outcome.object], version) for version in listed_versions())
    assert not retain_count_warnings(source, TORCH_INCLUDE)
    assert not list(forbidden_includes(source.path))


@pytest.mark.parametrize(
    "name",
    ["misspelled_selector", "wrong_argument", "too_new_property", "too_new_constant", "arc_only"],
)
def test_mistake_does_not_compile(name: str, tmp_path: Path) -> None:
    source = Source(SELFTEST / f"{name}.mm")
    outcome = compile_source(source, tmp_path / "mistake.o", TORCH_INCLUDE)
    assert outcome.object is None
    assert re.search(planted_mistake(source.path), outcome.diagnostics)


@pytest.mark.parametrize("name", ["leak", "over_release"])
def test_unbalanced_reference_is_found(name: str) -> None:
    source = Source(SELFTEST / f"{name}.mm")
    (found,) = retain_count_warnings(source, TORCH_INCLUDE)
    assert re.search(planted_mistake(source.path), found)


@pytest.mark.skipif(
    tuple(map(int, TORCH_VERSION.split(".")[:2])) < (2, 10),
    reason="PyTorch before 2.10 does not declare the function under the name that is planted",
)
@pytest.mark.parametrize(
    ("version", "absent"),
    [
        ("2.8.0", "at::mps::dispatch_sync_with_rethrow"),
        ("2.13.0", "at::native::mps::dispatch_sync_with_rethrow"),
    ],
)
def test_symbol_of_another_version_is_named(version: str, absent: str, tmp_path: Path) -> None:
    source = Source(SELFTEST / "not_exported.mm")
    outcome = compile_source(source, tmp_path / "not_exported.o", TORCH_INCLUDE)
    assert outcome.object is not None, outcome.diagnostics
    (complaint,) = unresolved([outcome.object], version)
    assert complaint.startswith(f"not_exported.o: torch {version} does not export {absent}(")


@pytest.mark.parametrize("version", listed_versions())
def test_missing_vector_math_is_named(version: str, tmp_path: Path) -> None:
    outcome = compile_source(
        Source(SELFTEST / "vector_math.cpp"), tmp_path / "vector_math.o", TORCH_INCLUDE
    )
    assert outcome.object is not None, outcome.diagnostics
    (complaint,) = unresolved([outcome.object], version)
    assert complaint.startswith(f"vector_math.o: torch {version} does not export Sleef_expf4_u00 ")


def test_forbidden_header_is_named() -> None:
    found = list(forbidden_includes(SELFTEST / "forbidden_header.mm"))
    assert found == ["forbidden_header.mm:2: OperationUtils.h"]
