#include "isa.h"

#include <ATen/Version.h>

#include <string>

namespace mlxnorm::cpu {

Isa isa() {
  static const Isa chosen = [] {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") {
      return Isa::avx512;
    }
    return capability == "AVX2" ? Isa::avx2 : Isa::default_;
  }();
  return chosen;
}

}  // namespace mlxnorm::cpu
