"""The ops against PyTorch: `python -m torch_mlxnorm.bench --help`."""
