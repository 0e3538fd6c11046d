// The schema of every op. Each has an `.out` overload that returns nothing, which is the form that
// functionalization under torch.compile accepts.
#include <torch/library.h>

#include <iterator>
#include <string>

#include "ops/ops.h"

namespace mlxnorm {
namespace {

template <typename Op>
void define(torch::Library& m, const std::string& name) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  std::string results, outs;
  char alias = 'a';
  for (const char* result : Op::kResults) {
    results += results.empty() ? "Tensor" : ", Tensor";
    outs += std::string(", Tensor(") + alias++ + "!) " + result;
  }
  if (std::size(Op::kResults) > 1) {
    results = "(" + results + ")";
  }
  m.def((name + "(" + Op::kArguments + ") -> " + results).c_str(), tags);
  m.def((name + ".out(" + Op::kArguments + outs + ") -> ()").c_str(), tags);
}

}  // namespace

TORCH_LIBRARY(mlxnorm, m) {
#define MLXNORM_DEFINE(op) define<ops::op>(m, #op);
  MLXNORM_FOR_EACH_OP(MLXNORM_DEFINE)
#undef MLXNORM_DEFINE
  // Behind torch_mlxnorm.RmsNormRecord: the address of a record for tensors like this one.
  m.def(
      "_bake_rms_norm(Tensor like, int rows, int dim, ScalarType? weight_dtype, float eps, "
      "float weight_offset, str casting_mode) -> int");
}

}  // namespace mlxnorm
