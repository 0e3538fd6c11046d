#pragma once

#include <torch/library.h>

namespace mlxnorm::mps {

// All that MPS tensors have. Tests give it to another GPU's.
void register_on(torch::Library& m);

}  // namespace mlxnorm::mps
