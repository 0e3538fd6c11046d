"""A denoising step of Z-Image by one line. Give accelerate(...) a pipeline of diffusers instead:
its transformer and text encoder are found."""

import torch
from diffusers import ZImageTransformer2DModel

from torch_mlxnorm.integrations.diffusers import accelerate

torch.manual_seed(0)
model = ZImageTransformer2DModel(
    in_channels=4, dim=96, n_layers=2, n_refiner_layers=1, n_heads=3, n_kv_heads=3,
    cap_feat_dim=32, axes_dims=[8, 12, 12], axes_lens=[64, 32, 32],
)  # fmt: skip
model = model.to(torch.bfloat16).eval()
latents, text = [torch.randn(4, 1, 8, 12).bfloat16()], [torch.randn(7, 32).bfloat16()]
time = torch.tensor([0.5]).bfloat16()


@torch.no_grad()
def step() -> torch.Tensor:
    return model(latents, time, text, return_dict=False)[0][0]


before = step()
report = accelerate(model, step=step)
print(report)
after = step()
difference = (after.float() - before.float()).abs().max() / before.abs().max()
print(f"largest difference: {difference:.2e} of the largest element")
assert difference < 0.02
report.restore()
assert torch.equal(step(), before)
