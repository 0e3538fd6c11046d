// Formulas that ops.metal and ops_host.cpp share: C++14 without address spaces.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#define METAL_FUNC inline
#endif

namespace selftest {

enum OpsLimits { kMaxInputs = 3, kMaxOutputs = 2, kMaxThreads = 64, kSimdWidth = 32 };

enum OpsBuffer {
  kInput0Buffer,
  kInput1Buffer,
  kInput2Buffer,
  kWeightBuffer,
  kOutput0Buffer,
  kOutput1Buffer,
  kOpsParams,
};

enum OpsConstant { kOperandTypes = 0 };

// Two bits for each operand of an op, in one word.
enum OperandType : uint32_t { kAbsent = 0, kAsInput = 1, kFloat32 = 2 };

inline OperandType operand_type(uint32_t types, int operand) {
  return OperandType((types >> (2 * operand)) & 3);
}

struct OpsParams {
  uint32_t count;
  float scale;
};

// What a thread handles at once.
template <int n>
struct Numbers {
  float v[n];

  METAL_FUNC Numbers plus(float b) const {
    Numbers sum;
    for (int i = 0; i < n; ++i) {
      sum.v[i] = v[i] + b;
    }
    return sum;
  }
};

template <int n>
METAL_FUNC Numbers<n> operator+(Numbers<n> a, Numbers<n> b) {
  for (int i = 0; i < n; ++i) {
    a.v[i] += b.v[i];
  }
  return a;
}
template <int n>
METAL_FUNC Numbers<n> operator*(Numbers<n> a, Numbers<n> b) {
  for (int i = 0; i < n; ++i) {
    a.v[i] *= b.v[i];
  }
  return a;
}
template <int n>
METAL_FUNC Numbers<n> operator*(Numbers<n> a, float b) {
  for (int i = 0; i < n; ++i) {
    a.v[i] *= b;
  }
  return a;
}

template <typename Values, int n>
struct Outputs {
  Values values[n];
};

// out = (x + residual) * weight * scale
struct WeightedSum {
  enum Input { kX, kResidual };
  enum { kInputs = 2, kWeights = 1, kOutputs = 1 };

  template <typename Row>
  static METAL_FUNC typename Row::Values first(Row row) {
    return row.input(kX) + row.input(kResidual);
  }
  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Outputs<Values, kOutputs> finish(Row row, Values x) {
    return {{x * row.weight() * row.scale}};
  }
};

// out_a = x * y + z
// out_b = (x * y + z + 1) * x
struct ProductAndSum {
  enum { kInputs = 3, kWeights = 0, kOutputs = 2 };

  template <typename Row>
  static METAL_FUNC typename Row::Values first(Row row) {
    return row.input(0) * row.input(1) + row.input(2);
  }
  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Outputs<Values, kOutputs> finish(Row row, Values x) {
    return {{x, x.plus(0.5f).plus(0.5f) * row.input(0)}};
  }
};

}  // namespace selftest
