// Counters that tests read through metal_sim.stats().
#pragma once

#include <atomic>
#include <cstdint>

namespace sim {

// The fields in the order of SIM_FOR_EACH_COUNTER; Python reads their names from the library.
#define SIM_FOR_EACH_COUNTER(X)                                                 \
  X(dispatches)       /* encoded by anyone */                                   \
  X(messages)         /* to compute command encoders, but for endEncoding */    \
  X(blocks)           /* that ran on a queue by dispatch_sync */                \
  X(commits)          /* command buffers that PyTorch's stream committed */     \
  X(synchronizations) /* times anyone waited for the stream */                  \
  X(outside_commits)  /* commit, endEncoding or wait on the stream's objects */ \
                      /* by code other than the stream */                       \
  X(copies)           /* tensor copies that touch the device */                 \
  X(copied_bytes)                                                               \
  X(buffers)             /* MTLBuffers made */                                  \
  X(libraries)           /* MTLLibraries made from source */                    \
  X(fast_math_libraries) /* of them, with fast or relaxed math */               \
  X(kernels_compiled)    /* in them */                                          \
  X(compiled_at_once)    /* most sources that were being compiled at a time */  \
  X(metallibs)           /* MTLLibraries made from a metallib */                \
  X(functions)           /* MTLFunctions made */                                \
  X(pipelines)           /* MTLComputePipelineStates made */                    \
  X(cpu_fallbacks)       /* ATen operators that ran on the CPU */

struct Stats {
#define SIM_DECLARE_COUNTER(name) std::atomic<uint64_t> name{0};
  SIM_FOR_EACH_COUNTER(SIM_DECLARE_COUNTER)
#undef SIM_DECLARE_COUNTER
};

Stats& stats();

// Encoders count the messages that they get and do nothing else: what remains of a call's time and
// allocations is the product's.
extern std::atomic<bool> only_counts;

// Counts a message. Is anything to be done about it?
inline bool is_heard() {
  ++stats().messages;
  return !only_counts;
}

}  // namespace sim
