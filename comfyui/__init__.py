"""torch_mlxnorm in ComfyUI: a folder for `custom_nodes`, see README.md. It has no nodes."""

from __future__ import annotations

import logging

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

log = logging.getLogger("torch_mlxnorm")


def start() -> str:
    """Registers and reroutes, and says what."""
    from torch_mlxnorm.integrations.comfy import register, reroute_rms_norm

    kernels, norms = register(), reroute_rms_norm()
    for report in (kernels, norms):
        log.debug("%s", report)
    said = f"{len(kernels.replaced)} functions of {kernels.title}"
    said += f" and {', '.join(norms.replaced) or 'no RMS norm of ComfyUI'}"
    alone = [
        f"{entry.function} left alone: {entry.reason}" for entry in norms.entries if entry.reason
    ]
    return "; ".join([f"{said} on {' and '.join(kernels.devices)}", *alone])


try:
    log.info("torch_mlxnorm: %s", start())
except ImportError as error:
    log.warning("torch_mlxnorm is not used: %s", error)
