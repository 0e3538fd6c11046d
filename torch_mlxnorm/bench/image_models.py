"""Transformers of diffusers, and what they are called with in a denoising step; VAEs, and what they
decode. With the settings that diffusers has by default they are those of the published models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Randn = Callable[..., Tensor]


@dataclass(frozen=True)
class Size:
    """Of a batch of latents, in patches, and of text, in tokens."""

    frames: int
    height: int
    width: int
    text: int
    batch: int = 1

    @property
    def patches(self) -> int:
        return self.frames * self.height * self.width


@dataclass(frozen=True)
class ImageModel:
    """`arguments` are those of a step, given settings, a function for random tensors and a size; a
    VAE's patches are its latents."""

    class_name: str
    arguments: Callable[[Any, Randn, Size], dict[str, Any]]
    size: Size
    settings: dict[str, Any] = field(default_factory=dict)
    method: str = "__call__"

    def make(self, dtype: torch.dtype, device: str) -> nn.Module:
        """With random weights, also where models begin with ones and zeros."""
        import diffusers

        torch.manual_seed(0)
        with torch.device("meta" if device == "meta" else "cpu"):
            model = getattr(diffusers, self.class_name)(**self.settings)
        model = model.eval().requires_grad_(False).to(dtype)
        if device == "meta":
            return model
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += torch.randn_like(parameter) / 8
        return model.to(device)

    def step(self, model: nn.Module, size: Size | None = None) -> Tensor:
        """What the model makes of the same random latents at each call."""
        parameter = next(model.parameters())
        generator = torch.Generator().manual_seed(1)

        def randn(*shape: int) -> Tensor:
            if parameter.is_meta:
                return torch.empty(shape, device="meta", dtype=parameter.dtype)
            return torch.randn(*shape, generator=generator).to(parameter.device, parameter.dtype)

        with torch.no_grad():
            arguments = self.arguments(model.config, randn, size or self.size)
            result = getattr(model, self.method)(**arguments, return_dict=False)[0]
        return torch.stack(result) if isinstance(result, list) else result


def _ids(like: Tensor, *sizes: int) -> Tensor:
    grids = torch.meshgrid(*[torch.arange(n, device=like.device) for n in sizes], indexing="ij")
    return torch.stack(grids, -1).view(-1, len(sizes))


def _mask(like: Tensor, size: Size) -> Tensor:
    """All text of the first, two thirds of the rest."""
    mask = torch.ones(size.batch, size.text, device=like.device, dtype=torch.bool)
    mask[1:, size.text * 2 // 3 :] = False
    return mask


def _z_image(config: Any, randn: Randn, size: Size) -> dict[str, Any]:
    latents = [
        randn(config.in_channels, size.frames, 2 * size.height, 2 * size.width)
        for _ in range(size.batch)
    ]
    text = [randn(size.text, config.cap_feat_dim) for _ in range(size.batch)]
    return {"x": latents, "t": randn(size.batch).abs(), "cap_feats": text}


def _flux(config: Any, randn: Randn, size: Size) -> dict[str, Any]:
    hidden = randn(size.batch, size.patches, config.in_channels)
    ids = _ids(hidden, size.frames, size.height, size.width)
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": randn(size.batch, size.text, config.joint_attention_dim),
        "pooled_projections": randn(size.batch, config.pooled_projection_dim),
        "timestep": randn(size.batch).abs(),
        "guidance": randn(size.batch).abs() if config.guidance_embeds else None,
        "img_ids": ids.to(hidden.dtype),
        "txt_ids": torch.zeros(size.text, 3, device=hidden.device, dtype=hidden.dtype),
    }


def _flux_2(config: Any, randn: Randn, size: Size) -> dict[str, Any]:
    hidden = randn(size.batch, size.patches, config.in_channels)
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": randn(size.batch, size.text, config.joint_attention_dim),
        "timestep": randn(size.batch).abs(),
        "guidance": randn(size.batch).abs(),
        "img_ids": _ids(hidden, size.frames, size.height, size.width, 1),
        "txt_ids": _ids(hidden, 1, 1, 1, size.text),
    }


def _qwen(config: Any, randn: Randn, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": randn(size.batch, size.patches, config.in_channels),
        "encoder_hidden_states": randn(size.batch, size.text, config.joint_attention_dim),
        "timestep": randn(size.batch).abs(),
        "img_shapes": [[(size.frames, size.height, size.width)]] * size.batch,
    }


def _wan(config: Any, randn: Randn, size: Size) -> dict[str, Any]:
    latents = size.frames, 2 * size.height, 2 * size.width
    return {
        "hidden_states": randn(size.batch, config.in_channels, *latents),
        "encoder_hidden_states": randn(size.batch, size.text, config.text_dim),
        "timestep": randn(size.batch).abs() * 1000,
    }


def _ltx(config: Any, randn: Randn, size: Size) -> dict[str, Any]:
    time = randn(size.batch).abs() * 1000
    return {
        "hidden_states": randn(size.batch, size.patches, config.in_channels),
        "encoder_hidden_states": randn(size.batch, size.text, config.caption_channels),
        "timestep": time,
        "encoder_attention_mask": _mask(time, size),
        "num_frames": size.frames,
        "height": size.height,
        "width": size.width,
    }


def _lumina_2(config: Any, randn: Randn, size: Size) -> dict[str, Any]:
    time = randn(size.batch).abs()
    return {
        "hidden_states": randn(size.batch, config.in_channels, 2 * size.height, 2 * size.width),
        "timestep": time,
        "encoder_hidden_states": randn(size.batch, size.text, config.cap_feat_dim),
        "encoder_attention_mask": _mask(time, size),
    }


def _hunyuan(config: Any, randn: Randn, size: Size) -> dict[str, Any]:
    time = randn(size.batch).abs() * 1000
    latents = size.frames, 2 * size.height, 2 * size.width
    return {
        "hidden_states": randn(size.batch, config.in_channels, *latents),
        "timestep": time,
        "encoder_hidden_states": randn(size.batch, size.text, config.text_embed_dim),
        "encoder_attention_mask": _mask(time, size),
        "pooled_projections": randn(size.batch, config.pooled_projection_dim),
        "guidance": time,
    }


def _hidream(config: Any, randn: Randn, size: Size) -> dict[str, Any]:
    layers, channels = len(config.llama_layers), config.caption_channels
    latents = config.in_channels, 2 * size.height, 2 * size.width
    return {
        "hidden_states": randn(size.batch, *latents),
        "timesteps": randn(size.batch).abs() * 1000,
        "encoder_hidden_states_t5": randn(size.batch, size.text, channels[0]),
        "encoder_hidden_states_llama3": randn(layers, size.batch, size.text, channels[1]),
        "pooled_embeds": randn(size.batch, config.text_emb_dim),
    }


# Images of 1024 x 1024, and the videos that the models were published with.
def _latents(config: Any, randn: Randn, size: Size) -> dict[str, Any]:
    channels = config.z_dim if "z_dim" in config else config.latent_channels
    return {"z": randn(size.batch, channels, size.frames, size.height, size.width)}


def vae(class_name: str, size: Size) -> ImageModel:
    return ImageModel(class_name, _latents, size, method="decode")


MODELS = {
    "Z-Image": ImageModel("ZImageTransformer2DModel", _z_image, Size(1, 64, 64, 128)),
    "Lumina 2": ImageModel("Lumina2Transformer2DModel", _lumina_2, Size(1, 64, 64, 256)),
    "Flux 1": ImageModel("FluxTransformer2DModel", _flux, Size(1, 64, 64, 512)),
    "Flux 2": ImageModel("Flux2Transformer2DModel", _flux_2, Size(1, 64, 64, 512)),
    "Qwen-Image": ImageModel("QwenImageTransformer2DModel", _qwen, Size(1, 64, 64, 256)),
    "Wan 2.1 14B": ImageModel("WanTransformer3DModel", _wan, Size(21, 30, 52, 512)),
    "LTX": ImageModel("LTXVideoTransformer3DModel", _ltx, Size(21, 16, 24, 256)),
    "HunyuanVideo": ImageModel("HunyuanVideoTransformer3DModel", _hunyuan, Size(33, 45, 80, 256)),
    "HiDream": ImageModel(
        "HiDreamImageTransformer2DModel", _hidream, Size(1, 64, 64, 128),
        dict(patch_size=2, in_channels=16, caption_channels=[4096, 4096], llama_layers=[*range(48)],
             axes_dims_rope=(64, 32, 32)),
    ),
    "Qwen-Image VAE": vae("AutoencoderKLQwenImage", Size(1, 128, 128, 0)),
    "Wan 2.1 VAE": vae("AutoencoderKLWan", Size(21, 60, 104, 0)),
    "LTX VAE": vae("AutoencoderKLLTXVideo", Size(21, 16, 24, 0)),
    # A tile: its attention has a mask of all patches by all patches.
    "HunyuanVideo 1.5 VAE": vae("AutoencoderKLHunyuanVideo15", Size(5, 16, 16, 0)),
}  # fmt: skip
