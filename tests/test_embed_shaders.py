"""csrc/mps/embed_shaders.py: what of the shaders goes into the extension."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SHADERS = ROOT / "shaders"
SCRIPT = str(ROOT / "csrc/mps/embed_shaders.py")
NAMES = sorted(path.stem for path in SHADERS.glob("*.metal"))


def embedded(output: Path, **options: Any) -> str:
    runpy.run_path(SCRIPT)["embed"](SHADERS, output, **options)
    return output.read_text()


@pytest.mark.parametrize("wanted", [None, "", "0", "1"])
def test_line_markers_are_an_option(
    wanted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the build: no public Metal source that is compiled at run time has any."""
    monkeypatch.delenv("TORCH_MLXNORM_SHADER_LINES", raising=False)
    if wanted is not None:
        monkeypatch.setenv("TORCH_MLXNORM_SHADER_LINES", wanted)
    text = embedded(tmp_path / "embedded.h", metallib=lambda shader: None)
    assert ('#line 1 "shaders/norm_kernels.h"' in text) == (wanted == "1")
    assert ("#line" in text) == (wanted == "1")


def test_source_is_complete_and_instantiates_nothing(tmp_path: Path) -> None:
    text = embedded(tmp_path / "embedded.h", metallib=lambda shader: None)
    assert '#include "' not in text and "#pragma once\n\n#include <cstddef>" in text
    assert text.count("#define INSTANTIATE_AT_RUN_TIME\n") == len(NAMES)
    assert text.count("nullptr, 0") == len(NAMES)


def test_an_unchanged_header_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "embedded.h"
    embedded(output, metallib=lambda shader: None)
    before = output.stat().st_mtime_ns
    embedded(output, metallib=lambda shader: None)
    assert output.stat().st_mtime_ns == before
    assert "{1,2,3}" in embedded(output, metallib=lambda shader: b"\1\2\3")


def test_metallibs_are_compiled_from_the_files_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all kernels, and no flag that lets the compiler change a bit."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if "-o" in command:
            Path(command[-1]).write_bytes(b"\7")
        return subprocess.CompletedProcess(command, 0, stdout="1 warning generated.\n")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    assert embedded(tmp_path / "embedded.h").count("{7}") == len(NAMES)
    compiled = [command for command in commands if "-o" in command]
    assert [command[-3] for command in compiled] == [str(SHADERS / f"{n}.metal") for n in NAMES]
    for command in compiled:
        assert command[:4] == ["xcrun", "-sdk", "macosx", "metal"]
        assert {"-std=metal3.1", "-fno-fast-math", "-ffp-contract=off"} <= set(command)
        assert not any(flag.startswith("-D") for flag in command)
