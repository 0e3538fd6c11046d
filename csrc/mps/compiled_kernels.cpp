#include <mutex>
#include <utility>

#include "pipeline.h"

namespace mlxnorm::mps {
namespace {

struct Log {
  std::mutex mutex;
  std::vector<CompiledKernel> kernels;
};

Log& log() {
  static auto* instance = new Log;
  return *instance;
}

}  // namespace

void add_compiled(CompiledKernel kernel) {
  const std::lock_guard<std::mutex> lock(log().mutex);
  log().kernels.push_back(std::move(kernel));
}

std::vector<CompiledKernel> compiled_kernels() {
  const std::lock_guard<std::mutex> lock(log().mutex);
  return log().kernels;
}

}  // namespace mlxnorm::mps
