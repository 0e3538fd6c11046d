"""Translate Metal shaders: `msl` is the front end, `cpp_backend` writes C++ for the simulator's
executor, `cuda_backend` CUDA for NVRTC."""
