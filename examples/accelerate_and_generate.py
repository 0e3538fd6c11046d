"""A model of transformers by one line. Give from_pretrained(...) the name of a real one."""

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from torch_mlxnorm.integrations.transformers import accelerate

torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=32,
)  # fmt: skip
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
prompt = torch.randint(512, (1, 16))
before = model.generate(prompt, max_new_tokens=32, do_sample=False)

report = accelerate(model)
print(report)
after = model.generate(prompt, max_new_tokens=32, do_sample=False)
print("tokens equal:", torch.equal(before, after))
assert torch.equal(before, after)
