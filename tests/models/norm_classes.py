"""The norm classes of the installed transformers, each as a module of random weights."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

NAME = re.compile(
    r"^class (\w*(?:RMSNorm|RmsNorm|RMSNORM|LayerNorm|L2Norm|TimestepNorm)\w*)\(", re.M
)
DIM = 256


def classes() -> Iterator[type[nn.Module]]:
    """Each that a model defines, by the order of their names."""
    import transformers.models

    folder = Path(transformers.models.__file__).parent
    for info in pkgutil.iter_modules([str(folder)]):
        for file in sorted((folder / info.name).glob("modeling_*.py")):
            names = NAME.findall(file.read_text())
            if not names:
                continue
            module = importlib.import_module(f"transformers.models.{info.name}.{file.stem}")
            for name in names:
                cls = getattr(module, name, None)
                if inspect.isclass(cls) and issubclass(cls, nn.Module):
                    yield cls


class _Config(SimpleNamespace):
    """Has whatever a constructor asks for."""

    def __getattr__(self, name: str) -> object:
        if "eps" in name:
            return 1e-6
        if name.endswith(("size", "dim")):
            return DIM
        raise AttributeError(name)


def build(cls: type[nn.Module]) -> nn.Module:
    """With DIM elements in a row. Raises if it is not clear how."""
    arguments = {}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name == "config":
            arguments[name] = _Config()
        elif "group" in name and parameter.default is parameter.empty:
            arguments[name] = DIM // 4 if "size" in name else 4
        elif "eps" in name:
            arguments[name] = 1e-6
        elif parameter.default is parameter.empty:
            arguments[name] = DIM
    module = cls(**arguments)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.eval().requires_grad_(False)


def survey(dtype: torch.dtype) -> Iterator[tuple[type[nn.Module], object]]:
    """What accelerate reports of each class: an entry, or why it could not be built."""
    from torch_mlxnorm.integrations.transformers import accelerate

    torch.manual_seed(0)
    for cls in classes():
        try:
            module = build(cls).to(dtype)
        except Exception as error:
            yield cls, f"{type(error).__name__}: {error}"
            continue
        entries = accelerate(nn.ModuleList([module])).entries
        yield cls, entries[0] if entries else None
