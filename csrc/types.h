// Vocabulary shared by checks, CPU kernels and Metal host code. Free of PyTorch.
#pragma once

#include <cstdint>

namespace mlxnorm {

enum class DType { float32, float16, bfloat16 };

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::float32 ? 4 : 2;
}

// A weight has the dtype of the activation, or float32.
enum class WeightType { none, same_as_x, float32 };

enum class CastingMode {
  gemma,  // multiply by the weight in float32, round once
  llama,  // round the normalized value, multiply by the weight, round again
};

struct RmsNormOptions {
  float eps;
  float weight_offset;
  CastingMode casting_mode;
};

}  // namespace mlxnorm
