"""Runs setup.py of the current folder on Linux as a Mac's Python would: sys, os, platform and
sysconfig answer as there. Arguments: a JSON description of the Mac, then those of setup.py."""

from __future__ import annotations

import _osx_support
import json
import os
import platform
import runpy
import sys
import sysconfig
from importlib.metadata import entry_points
from pathlib import Path

import torch  # of Linux, so before anything looks like a Mac

for writer in entry_points(group="egg_info.writers"):  # as what packages add to setuptools
    writer.load()

mac = json.loads(sys.argv[1])
sys.argv = ["setup.py", *sys.argv[2:]]

variables = sysconfig.get_config_vars()
sys.platform = "darwin"
sys.prefix = mac["prefix"]
system = os.uname_result(("Darwin", "mac", "24.0.0", "Version 24.0.0", mac["machine"]))
os.uname = lambda: system
platform.machine = lambda: mac["machine"]
platform.system = lambda: "Darwin"
platform.mac_ver = lambda *_: ("15.0", ("", "", ""), mac["machine"])
_osx_support._get_system_version = lambda: "15.0"
_osx_support._find_appropriate_compiler = lambda found: found  # Xcode's
_osx_support._remove_unsupported_archs = lambda found: found  # all of them work

archs = mac["archs"]
abi = f"cpython-{sys.version_info[0]}{sys.version_info[1]}-darwin"
# As python.org's Python has them.
variables.update(
    CC="clang",
    CXX="clang++",
    CFLAGS=f"-fno-common -dynamic -DNDEBUG -g -O3 -Wall {archs} -g",
    CCSHARED="",
    LDSHARED=f"clang -bundle -undefined dynamic_lookup {archs} -g",
    LDCXXSHARED=f"clang++ -bundle -undefined dynamic_lookup {archs} -g",
    MACOSX_DEPLOYMENT_TARGET="10.13",
    SOABI=abi,
    EXT_SUFFIX=f".{abi}.so",
)

from torch.utils import cpp_extension  # noqa: E402

torch.backends.mps.is_built = lambda: True
cpp_extension._TORCH_PATH = mac["torch"]
cpp_extension.TORCH_LIB_PATH = str(Path(mac["torch"]) / "lib")
if (version := Path(mac["torch"], "version.py")).exists():  # PyTorch itself, not its place alone
    torch.__version__ = runpy.run_path(str(version))["__version__"]
runpy.run_path(str(Path("setup.py").resolve()), run_name="__main__")
