#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>

#include "../kernels.h"
#include "row.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

// W is void when there is no weight.
template <typename T, typename W, CastingMode kCasting>
struct Scale {
  const W* weight;
  Vec inverse_rms;
  Vec weight_offset;

  // The block of x at element i; `count` when the row ends within it.
  template <typename... Count>
  Block apply(Block x, int64_t i, Count... count) const {
    Block y = x * inverse_rms;
    if constexpr (kCasting == CastingMode::llama) {
      y = round_to<T>(y);
    }
    if constexpr (!std::is_void_v<W>) {
      y = y * (load_block(weight + i, count...) + weight_offset);
    }
    return y;
  }
};

template <typename T, typename W, CastingMode kCasting, bool kStreaming>
void rms_norm(const RmsNormArguments& a, int64_t begin, int64_t end) {
  const int64_t dim = a.dim;
  const int64_t rows_ahead = prefetch_distance<T>(dim);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row_offset(a.x_rows, uint64_t(row));
    T* out = static_cast<T*>(a.out) + row * dim;
    const float mean = sum_of_squares(x, dim) / float(dim);
    const Scale<T, W, kCasting> scale{static_cast<const W*>(a.weight),
                                      Vec(1.0f / std::sqrt(mean + a.eps)), Vec(a.weight_offset)};
    // Rows to come are fetched while this one, already in the cache, is scaled.
    const int64_t later = std::min(row + rows_ahead, end - 1);
    const T* fetched_x = static_cast<const T*>(a.x) + row_offset(a.x_rows, uint64_t(later));
    const T* fetched_out = static_cast<const T*>(a.out) + later * dim;
    int64_t i = 0;
    for (; i + kBlock <= dim; i += kBlock) {
      prefetch_block(fetched_x + i);
      if constexpr (!kStreaming) {
        prefetch_block</*kForWriting=*/true>(fetched_out + i);
      }
      store_block<kStreaming>(out + i, scale.apply(load_block(x + i), i));
    }
    if (i < dim) {
      store_block(out + i, scale.apply(load_block(x + i, dim - i), i, dim - i), dim - i);
    }
  }
  if constexpr (kStreaming) {
    stream_fence();
  }
}

template <typename T, typename W, CastingMode kCasting>
RmsNormKernel select_store(bool streaming) {
  return streaming ? rms_norm<T, W, kCasting, true> : rms_norm<T, W, kCasting, false>;
}

template <typename T, typename W>
RmsNormKernel select_casting(CastingMode casting_mode, bool streaming) {
  // Rounding before the weight changes nothing in float32, nor where no weight follows.
  if constexpr (!std::is_same_v<T, float> && !std::is_void_v<W>) {
    if (casting_mode == CastingMode::llama) {
      return select_store<T, W, CastingMode::llama>(streaming);
    }
  }
  return select_store<T, W, CastingMode::gemma>(streaming);
}

template <typename T>
RmsNormKernel select_weight(WeightType weight, CastingMode casting_mode, bool streaming) {
  switch (weight) {
    case WeightType::none:
      return select_casting<T, void>(casting_mode, streaming);
    case WeightType::float32:
      return select_casting<T, float>(casting_mode, streaming);
    default:
      return select_casting<T, T>(casting_mode, streaming);
  }
}

}  // namespace

RmsNormKernel rms_norm_kernel(DType dtype, WeightType weight, CastingMode casting_mode,
                              bool streaming) {
  switch (dtype) {
    case DType::float16:
      return select_weight<c10::Half>(weight, casting_mode, streaming);
    case DType::bfloat16:
      return select_weight<c10::BFloat16>(weight, casting_mode, streaming);
    default:
      return select_weight<float>(weight, casting_mode, streaming);
  }
}

}  // namespace mlxnorm::cpu::CPU_CAPABILITY
