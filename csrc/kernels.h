// The functional and the `.out` kernel of every op on a device.
//
// A Device has
//   check(call)        refuses what only this device cannot do
//   empty(like)        an uninitialised contiguous tensor
//   run(call, outs)    the op; outs are checked, one for each result
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <iterator>
#include <tuple>
#include <utility>

#include "call.h"
#include "ops/ops.h"

namespace mlxnorm {

template <size_t>
using MutableTensor = at::Tensor&;

template <typename Op, typename Device, typename Check = decltype(&Op::check),
          typename Results = std::make_index_sequence<std::size(Op::kResults)>>
struct Kernels;

template <typename Op, typename Device, typename... Arguments, size_t... kResult>
struct Kernels<Op, Device, NormCall (*)(Arguments...), std::index_sequence<kResult...>> {
  static auto functional(Arguments... arguments) {
    const NormCall call = Op::check(arguments...);
    Device::check(call);
    at::Tensor results[] = {((void)kResult, Device::empty(call.like()))...};
    const at::Tensor* const outs[] = {&results[kResult]...};
    Device::run(call, outs);
    if constexpr (sizeof...(kResult) == 1) {
      return std::move(results[0]);
    } else {
      return std::make_tuple(std::move(results[kResult])...);
    }
  }

  static void out(Arguments... arguments, MutableTensor<kResult>... tensors) {
    const NormCall call = Op::check(arguments...);
    const at::Tensor* const outs[] = {&tensors...};
    for (size_t i = 0; i < std::size(outs); ++i) {
      const Argument out(Op::kResults[i], *outs[i]);
      call.check_out(out);
      for (size_t j = 0; j < i; ++j) {
        check_no_overlap(qualified_name(call.op()), out, {Op::kResults[j], *outs[j]},
                         /*allow_same=*/false);
      }
    }
    Device::check(call);
    Device::run(call, outs);
  }
};

template <typename Device>
void register_kernels(torch::Library& m) {
#define MLXNORM_REGISTER(op)                         \
  m.impl(#op, Kernels<ops::op, Device>::functional); \
  m.impl(#op ".out", Kernels<ops::op, Device>::out);
  MLXNORM_FOR_EACH_OP(MLXNORM_REGISTER)
#undef MLXNORM_REGISTER
}

}  // namespace mlxnorm
