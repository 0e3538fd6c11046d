// Making libraries and pipelines, for SimDevice.
#pragma once

#include <string>

#include "metal_objects.h"

namespace sim {

// Both return an object that the caller owns, or nil and an error.
SimLibrary* make_library(const std::string& source, MTLCompileOptions* options, NSError** error);
SimPipeline* make_pipeline(SimFunction* function, NSError** error);

}  // namespace sim
