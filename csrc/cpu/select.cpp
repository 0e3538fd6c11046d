#include "select.h"

#include <ATen/Version.h>

#include <string>

namespace mlxnorm::cpu {
namespace {

using Selector = NormKernel (*)(const NormArguments& arguments);

// By Op.
#define MLXNORM_DEFAULT(op) DEFAULT::op##_kernel,
constexpr Selector kDefault[] = {MLXNORM_FOR_EACH_OP(MLXNORM_DEFAULT)};
#undef MLXNORM_DEFAULT
#ifdef __x86_64__
#define MLXNORM_AVX2(op) AVX2::op##_kernel,
constexpr Selector kAvx2[] = {MLXNORM_FOR_EACH_OP(MLXNORM_AVX2)};
#undef MLXNORM_AVX2
#define MLXNORM_AVX512(op) AVX512::op##_kernel,
constexpr Selector kAvx512[] = {MLXNORM_FOR_EACH_OP(MLXNORM_AVX512)};
#undef MLXNORM_AVX512
#endif

const Selector* choose() {
#ifdef __x86_64__
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return kAvx512;
  }
  if (capability == "AVX2") {
    return kAvx2;
  }
#endif
  return kDefault;
}

}  // namespace

NormKernel select_kernel(Op op, const NormArguments& arguments) {
  static const Selector* const selectors = choose();
  return selectors[int(op)](arguments);
}

}  // namespace mlxnorm::cpu
