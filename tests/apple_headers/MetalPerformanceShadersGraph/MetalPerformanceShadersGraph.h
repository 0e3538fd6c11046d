// The names of MetalPerformanceShadersGraph that <ATen/mps/MPSStream.h> mentions. See ../README.md.
#pragma once

#include <MetalPerformanceShaders/MetalPerformanceShaders.h>

@class MPSGraph, MPSGraphCompilationDescriptor, MPSGraphExecutionDescriptor;
