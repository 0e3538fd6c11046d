// dispatch_sync for blocks that may throw. PyTorch's own moved from one namespace to another.
#pragma once

#include <dispatch/dispatch.h>

#include <exception>

namespace sim {

inline void run_on(dispatch_queue_t queue, void (^block)()) {
  __block std::exception_ptr failure;
  dispatch_sync(queue, ^{
    try {
      block();
    } catch (...) {
      failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace sim
