// Metal's libraries and pipelines: when kernels are compiled.
//
// Plain C++, so that what calls it is: pipeline.mm and encode.mm alone are Objective-C++, and
// tests/gpu has other ones, for an NVIDIA GPU.
#pragma once

#include <string>
#include <vector>

#include "pipeline_key.h"

namespace mlxnorm::mps {

// An MTLComputePipelineState.
struct PipelineState;
using Pipeline = PipelineState*;

// Made on first use, then cached for the life of the process. Threads that ask for different ones
// make them side by side. Raises when Metal fails.
Pipeline pipeline(const PipelineKey& key);

// How a pipeline came about.
struct CompiledKernel {
  std::string name;    // the function's
  const char* origin;  // "metallib", or "source" that was compiled at run time
  double seconds;      // of the library, where it was not there yet, and of the pipeline
};

void add_compiled(CompiledKernel kernel);

// Of all pipelines so far, in the order in which they were ready.
std::vector<CompiledKernel> compiled_kernels();

}  // namespace mlxnorm::mps
