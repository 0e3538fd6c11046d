"""Small transformers of diffusers with random weights, and the arguments of a denoising step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class ImageModel:
    """A transformer, and what it is called with. Settings are those of a class of diffusers."""

    name: str
    settings: dict[str, Any]
    arguments: Callable[[Callable[..., Tensor]], dict[str, Any]]

    def make(self, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> nn.Module:
        import diffusers

        torch.manual_seed(0)
        model = getattr(diffusers, self.name)(**self.settings).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones, which would hide what is multiplied
                parameter += torch.randn_like(parameter) / 8
        return model.to(device, dtype)

    def step(self, model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> Any:
        """The sample, or what the model gives instead."""
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(1)

        def randn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        with torch.no_grad():
            result = model(**self.arguments(randn), return_dict=False)[0]
        return torch.stack(result) if isinstance(result, list) else result


def _z_image(randn: Callable[..., Tensor]) -> dict[str, Any]:
    time = randn(1).abs()
    return {"x": [randn(4, 1, 8, 12)], "t": time, "cap_feats": [randn(7, 32)]}


def _flux(randn: Callable[..., Tensor]) -> dict[str, Any]:
    hidden = randn(2, 24, 8)
    ids = torch.stack(torch.meshgrid(*map(torch.arange, (1, 4, 6)), indexing="ij"), -1).view(-1, 3)
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": randn(2, 9, 32),
        "pooled_projections": randn(2, 32),
        "timestep": randn(2).abs(),
        "guidance": None,
        "img_ids": ids.to(hidden.device, hidden.dtype),
        "txt_ids": torch.zeros(9, 3, device=hidden.device, dtype=hidden.dtype),
    }


def _flux_2(randn: Callable[..., Tensor]) -> dict[str, Any]:
    ids = torch.cartesian_prod(*map(torch.arange, (1, 4, 6, 1)))
    text = torch.cartesian_prod(*map(torch.arange, (1, 1, 1, 9)))
    hidden = randn(2, 24, 8)
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": randn(2, 9, 32),
        "timestep": randn(2).abs(),
        "guidance": randn(2).abs(),
        "img_ids": ids.to(hidden.device),
        "txt_ids": text.to(hidden.device),
    }


def _qwen(randn: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "hidden_states": randn(2, 24, 16),
        "encoder_hidden_states": randn(2, 9, 32),
        "timestep": randn(2).abs(),
        "img_shapes": [[(1, 4, 6)]] * 2,
    }


def _wan(randn: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "hidden_states": randn(2, 4, 2, 8, 12),
        "encoder_hidden_states": randn(2, 9, 32),
        "timestep": randn(2).abs() * 1000,
    }


def _ltx(randn: Callable[..., Tensor]) -> dict[str, Any]:
    time = randn(2).abs() * 1000
    return {
        "hidden_states": randn(2, 48, 8),
        "encoder_hidden_states": randn(2, 9, 32),
        "timestep": time,
        "encoder_attention_mask": torch.ones(2, 9, device=time.device, dtype=torch.bool),
        "num_frames": 2,
        "height": 4,
        "width": 6,
    }


def _lumina_2(randn: Callable[..., Tensor]) -> dict[str, Any]:
    time = randn(2).abs()
    mask = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    return {
        "hidden_states": randn(2, 4, 8, 12),
        "timestep": time,
        "encoder_hidden_states": randn(2, 9, 32),
        "encoder_attention_mask": mask.to(time.device),
    }


def _hunyuan(randn: Callable[..., Tensor]) -> dict[str, Any]:
    time = randn(2).abs()
    mask = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    return {
        "hidden_states": randn(2, 4, 2, 8, 12),
        "timestep": time * 1000,
        "encoder_hidden_states": randn(2, 9, 32),
        "encoder_attention_mask": mask.to(time.device),
        "pooled_projections": randn(2, 32),
        "guidance": time * 1000,
    }


def _hidream(randn: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "hidden_states": randn(2, 4, 8, 8),
        "timesteps": randn(2).abs() * 1000,
        "encoder_hidden_states_t5": randn(2, 5, 32),
        "encoder_hidden_states_llama3": randn(4, 2, 7, 32),
        "pooled_embeds": randn(2, 32),
    }


HEADS = dict(attention_head_dim=32, num_attention_heads=3)
Z_IMAGE = ImageModel(
    "ZImageTransformer2DModel",
    dict(in_channels=4, dim=96, n_layers=2, n_refiner_layers=1, n_heads=3, n_kv_heads=3,
         cap_feat_dim=32, axes_dims=[8, 12, 12], axes_lens=[64, 32, 32]),
    _z_image,
)  # fmt: skip
FLUX = ImageModel(
    "FluxTransformer2DModel",
    dict(in_channels=8, num_layers=2, num_single_layers=2, joint_attention_dim=32,
         pooled_projection_dim=32, guidance_embeds=False, axes_dims_rope=(8, 12, 12), **HEADS),
    _flux,
)  # fmt: skip
FLUX_2 = ImageModel(
    "Flux2Transformer2DModel",
    dict(in_channels=8, num_layers=2, num_single_layers=2, joint_attention_dim=32,
         timestep_guidance_channels=32, axes_dims_rope=(8, 8, 8, 8), **HEADS),
    _flux_2,
)  # fmt: skip
QWEN_IMAGE = ImageModel(
    "QwenImageTransformer2DModel",
    dict(in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=32,
         axes_dims_rope=(8, 12, 12), **HEADS),
    _qwen,
)  # fmt: skip
WAN = ImageModel(
    "WanTransformer3DModel",
    dict(in_channels=4, out_channels=4, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2,
         rope_max_seq_len=32, **HEADS),
    _wan,
)  # fmt: skip
LTX = ImageModel(
    "LTXVideoTransformer3DModel",
    dict(in_channels=8, out_channels=8, cross_attention_dim=96, num_layers=2, caption_channels=32,
         **HEADS),
    _ltx,
)  # fmt: skip
LUMINA_2 = ImageModel(
    "Lumina2Transformer2DModel",
    dict(sample_size=16, in_channels=4, hidden_size=96, num_layers=2, num_refiner_layers=1,
         num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(8, 12, 12),
         axes_lens=(32, 32, 32), cap_feat_dim=32),
    _lumina_2,
)  # fmt: skip
HUNYUAN_VIDEO = ImageModel(
    "HunyuanVideoTransformer3DModel",
    dict(in_channels=4, out_channels=4, num_layers=2, num_single_layers=2, num_refiner_layers=1,
         text_embed_dim=32, pooled_projection_dim=32, rope_axes_dim=(8, 12, 12), **HEADS),
    _hunyuan,
)  # fmt: skip
HIDREAM = ImageModel(
    "HiDreamImageTransformer2DModel",
    dict(patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_single_layers=2,
         caption_channels=[32, 32], text_emb_dim=32, axes_dims_rope=(8, 12, 12),
         max_resolution=(8, 8), llama_layers=[0, 1, 2, 3], num_routed_experts=2,
         num_activated_experts=1, **HEADS),
    _hidream,
)  # fmt: skip
MODELS = {
    "Z-Image": Z_IMAGE,
    "Flux 1": FLUX,
    "Flux 2": FLUX_2,
    "Qwen-Image": QWEN_IMAGE,
    "Wan": WAN,
    "LTX": LTX,
    "Lumina 2": LUMINA_2,
    "HunyuanVideo": HUNYUAN_VIDEO,
    "HiDream": HIDREAM,
}
