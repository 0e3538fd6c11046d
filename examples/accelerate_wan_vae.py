"""Wan's VAE decodes a video, accelerated: the report, and the bytes of its norms."""

import torch
from diffusers import AutoencoderKLWan

from torch_mlxnorm.count import bytes_of_step
from torch_mlxnorm.integrations.diffusers import accelerate

torch.manual_seed(0)
model = AutoencoderKLWan(base_dim=32, z_dim=4, dim_mult=[1, 2], num_res_blocks=1,
                         temperal_downsample=[True], latents_mean=[0.0] * 4,
                         latents_std=[1.0] * 4)  # fmt: skip
model = model.to(torch.bfloat16).eval().requires_grad_(False)
latents = torch.randn(1, 4, 2, 24, 24).bfloat16()


@torch.no_grad()
def decode() -> torch.Tensor:
    return model.decode(latents, return_dict=False)[0]


print("norms:", bytes_of_step(model, decode))
before = decode()
report = accelerate(model, step=decode)
after = decode()
print(report)
difference = (after.float() - before.float()).abs().max() / before.abs().max()
print(f"largest difference: {difference:.2e} of the largest element")
assert difference < 0.02
