// What a row is multiplied or divided by, from the sum of its squares: in most ops the inverse rms,
// in those that normalize channels what their form says (shaders/formulas/channel_rms_norm.h).
#pragma once

#include "reduce.h"
#include "rows.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

template <typename Table>
constexpr bool kHasForm = has_option(Table::kOptions, kForm);

template <typename Table, typename T>
class Statistic {
 public:
  explicit Statistic(const NormArguments& call)
      : inverse_rms_(call.layout.dim, call.options.eps),
        dim_(double(call.layout.dim)),
        eps_(call.options.eps),
        form_(kHasForm<Table> ? choice_in(call.options.choices, kForm) : uint32_t(kRms)) {}

  float operator()(double sum) const {
    if constexpr (kHasForm<Table>) {
      switch (form_) {
        case kRmsSteps:
          return rounded(std::sqrt(rounded(rounded(float(sum / dim_)) + eps_)));
        case kNormalize:
          return at_least_eps(rounded(float(std::sqrt(sum))));
        case kNormalizeFloat32:
          return at_least_eps(float(std::sqrt(sum)));
      }
    }
    return inverse_rms_(sum);
  }

 private:
  static float rounded(float v) { return float(T(v)); }
  float at_least_eps(float v) const { return v < eps_ ? eps_ : v; }  // a NaN stays one

  InverseRms inverse_rms_;
  double dim_;
  float eps_;
  uint32_t form_;
};

// As a form may want it.
template <typename Table>
bool rounds_squares(const NormArguments& call) {
  return kHasForm<Table> && choice_in(call.options.choices, kForm) == kRmsSteps;
}

// Of a row, by the form of its op.
template <typename Table, typename T, typename Load>
inline double sum_of_squares_of(const NormArguments& call, Load load) {
  if constexpr (kHasForm<Table>) {
    if (rounds_squares<Table>(call)) {
      return sum_of_squares<T, /*kRounds=*/true>(call.layout.dim, load);
    }
  }
  return sum_of_squares<T>(call.layout.dim, load);
}

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
