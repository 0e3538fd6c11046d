"""Small transformers and VAEs of diffusers, with random weights."""

from __future__ import annotations

import dataclasses

from torch_mlxnorm.bench.image_models import MODELS as PUBLISHED
from torch_mlxnorm.bench.image_models import ImageModel, Size

HEADS = dict(attention_head_dim=32, num_attention_heads=3)
SETTINGS = {
    "Z-Image": dict(
        in_channels=4, dim=96, n_layers=2, n_refiner_layers=1, n_heads=3, n_kv_heads=3,
        cap_feat_dim=32, axes_dims=[8, 12, 12], axes_lens=[64, 32, 32],
    ),
    "Lumina 2": dict(
        sample_size=16, in_channels=4, hidden_size=96, num_layers=2, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(8, 12, 12),
        axes_lens=(32, 32, 32), cap_feat_dim=32,
    ),
    "Flux 1": dict(
        in_channels=8, num_layers=2, num_single_layers=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=(8, 12, 12), **HEADS,
    ),
    "Flux 2": dict(
        in_channels=8, num_layers=2, num_single_layers=2, joint_attention_dim=32,
        timestep_guidance_channels=32, axes_dims_rope=(8, 8, 8, 8), **HEADS,
    ),
    "Qwen-Image": dict(
        in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=32,
        axes_dims_rope=(8, 12, 12), **HEADS,
    ),
    "Wan 2.1 14B": dict(
        in_channels=4, out_channels=4, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2,
        rope_max_seq_len=32, **HEADS,
    ),
    "LTX": dict(
        in_channels=8, out_channels=8, cross_attention_dim=96, num_layers=2, caption_channels=32,
        **HEADS,
    ),
    "HunyuanVideo": dict(
        in_channels=4, out_channels=4, num_layers=2, num_single_layers=2, num_refiner_layers=1,
        text_embed_dim=32, pooled_projection_dim=32, rope_axes_dim=(8, 12, 12), **HEADS,
    ),
    "HiDream": dict(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_single_layers=2,
        caption_channels=[32, 32], text_emb_dim=32, axes_dims_rope=(8, 12, 12),
        max_resolution=(8, 8), llama_layers=[0, 1, 2, 3], num_routed_experts=0, **HEADS,
    ),
}  # fmt: skip
VIDEO_VAE = dict(
    base_dim=16, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True],
    latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
)  # fmt: skip
VAE_SETTINGS = {
    "Qwen-Image VAE": VIDEO_VAE,
    "Wan 2.1 VAE": VIDEO_VAE,
    "LTX VAE": dict(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_block_out_channels=(8, 8, 8, 8), decoder_layers_per_block=(1, 1, 1, 1, 1),
    ),
    "HunyuanVideo 1.5 VAE": dict(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1,
        spatial_compression_ratio=2, temporal_compression_ratio=1,
    ),
}  # fmt: skip
VIDEOS = ("Wan 2.1 14B", "LTX", "HunyuanVideo")


def _small(name: str) -> ImageModel:
    square = name == "HiDream"  # others are padded to the largest that it takes
    size = Size(2 if name in VIDEOS else 1, 4, 4 if square else 6, 9, 1 if name == "Z-Image" else 2)
    return dataclasses.replace(PUBLISHED[name], size=size, settings=SETTINGS[name])


MODELS = {name: _small(name) for name in SETTINGS}
VAES = {
    name: dataclasses.replace(PUBLISHED[name], size=Size(2, 4, 6, 0), settings=settings)
    for name, settings in VAE_SETTINGS.items()
}
