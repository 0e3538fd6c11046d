// The schema of every op. Each has an `.out` overload that returns nothing, which is the form that
// functionalization under torch.compile accepts.
#include <torch/library.h>

#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "call.h"
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
  // Behind torch_mlxnorm.RmsNormRecord: the address of a record for tensors like this one. Called
  // from C++ alone (csrc/python/module.cpp), which trusts the address.
  m.def(
      "_bake_rms_norm(Tensor like, ScalarType dtype, int rows, int dim, ScalarType? weight_dtype, "
      "float? eps, float weight_offset, str casting_mode) -> int");
  // Behind torch_mlxnorm/pipelines.py. Of `like` its dtype and device count, of operands, in the
  // order of Operand (shaders/params.h), their dtypes.
  m.def(
      "_warm_up(Tensor like, str op, int dim, Tensor?[] operands, bool scale_is_scalar, "
      "bool unaligned, str activation, str casting_mode, bool round_intermediates) -> ()");
  m.def("_compiled_kernels(Tensor like) -> (str[] names, str[] origins, float[] seconds)");
}

// Devices without records, and those that compile nothing at run time.
TORCH_LIBRARY_IMPL(mlxnorm, CompositeExplicitAutograd, m) {
  m.impl("_bake_rms_norm",
         [](const at::Tensor& like, at::ScalarType, int64_t, int64_t, std::optional<at::ScalarType>,
            std::optional<double>, double, std::string_view) -> int64_t {
           TORCH_CHECK_NOT_IMPLEMENTED(
               false, "mlxnorm::RmsNormRecord: device must be cpu or mps, got ", like.device());
         });
  m.impl("_warm_up", [](const at::Tensor&, std::string_view op, int64_t,
                        const c10::List<std::optional<at::Tensor>>&, bool, bool,
                        std::string_view activation, std::string_view casting_mode, bool) {
    parse_activation(op_of(op), activation);
    parse_casting_mode(op_of(op), casting_mode);
  });
  m.impl("_compiled_kernels", [](const at::Tensor&) {
    return std::tuple<std::vector<std::string>, std::vector<std::string>, std::vector<double>>();
  });
}

}  // namespace mlxnorm
