"""A denoising step of Flux, accelerated: the report, and the bytes that its kernels move."""

import torch
from diffusers import FluxTransformer2DModel

from torch_mlxnorm.count import bytes_of_step
from torch_mlxnorm.integrations.diffusers import accelerate

torch.manual_seed(0)
model = FluxTransformer2DModel(
    in_channels=8, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=3,
    joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(8, 12, 12),
)  # fmt: skip
model = model.to(torch.bfloat16).eval().requires_grad_(False)
ids = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(6))
inputs = {
    "hidden_states": torch.randn(1, 24, 8).bfloat16(),
    "encoder_hidden_states": torch.randn(1, 9, 32).bfloat16(),
    "pooled_projections": torch.randn(1, 32).bfloat16(),
    "timestep": torch.tensor([0.5]).bfloat16(),
    "img_ids": ids.bfloat16(),
    "txt_ids": torch.zeros(9, 3).bfloat16(),
}


@torch.no_grad()
def step() -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


print("norms and rotary embedding:", bytes_of_step(model, step))
before = step()
report = accelerate(model)
after = step()  # the first step compiles each kind of block, and compares it
print(report)
difference = (after.float() - before.float()).abs().max() / before.abs().max()
print(f"largest difference: {difference:.2e} of the largest element")
assert difference < 0.02
