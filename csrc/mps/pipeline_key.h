// What a pipeline is specialised for. Plain C++, as plan.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan.h"

namespace mlxnorm::mps {

struct PipelineKey {
  Op op;  // names the library, shaders/OP.metal, and is the prefix of its functions
  Plan plan;
  DType dtype;
  uint32_t tensor_types;
  uint32_t scalars;
  uint32_t choices;
  Spacing spacing;
  bool holds_pairs;  // has a thread both elements of every pair that is rotated?
};

// Where the segments of an op lie in memory; all have one dtype and dim.
using SegmentLayouts = std::span<const NormLayout* const>;

// Of calls that lie so.
PipelineKey key_of(const OpTable& op, SegmentLayouts layouts, const NormOptions& options,
                   bool aligned, Access access);

// Everything that a pipeline depends on, in one word; the thread counts do not enter it.
uint64_t packed(const PipelineKey& key);

// The tensors that a pipeline loads before the first sum, a bit for each.
uint32_t prefetched_tensors(const PipelineKey& key);

// The function constants of a pipeline, by FunctionConstant.
struct Constant {
  int index;
  uint32_t value;
  bool is_bool;  // else a uint
};
std::vector<Constant> constants_of(const PipelineKey& key);

}  // namespace mlxnorm::mps
