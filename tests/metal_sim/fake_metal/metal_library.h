// Making libraries and pipelines, for SimDevice.
#pragma once

#include <string>

#include "metal_objects.h"

namespace sim {

// All return an object that the caller owns, or nil and an error.
SimLibrary* make_library(const std::string& source, MTLCompileOptions* options, NSError** error);
// A simulated metallib is kMetallibMagic and the source that it was made of.
constexpr char kMetallibMagic[] = "simulated metallib\n";
SimLibrary* load_metallib(const std::string& bytes, NSError** error);
SimPipeline* make_pipeline(SimFunction* function, NSError** error);

}  // namespace sim
