#include "strides.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace mlxnorm {

std::optional<RowLayout> folded(at::IntArrayRef sizes, at::IntArrayRef strides, Groups groups) {
  int64_t size[3] = {1, 1, 1};
  int64_t stride[3] = {0, 0, 0};
  int last = -1;  // innermost first
  if (groups.count != 1) {
    last = 0;
    size[0] = groups.count;
    stride[0] = groups.size;
  }
  for (int64_t i = int64_t(sizes.size()) - 1; i >= 0; --i) {
    if (sizes[i] == 1) {
      continue;
    }
    if (last >= 0 && strides[i] == stride[last] * size[last]) {
      size[last] *= sizes[i];
      continue;
    }
    if (++last == 3) {
      return std::nullopt;
    }
    size[last] = sizes[i];
    stride[last] = strides[i];
  }
  constexpr int64_t kMaxSize = std::numeric_limits<uint32_t>::max();
  if (last <= 0) {
    return evenly_spaced(stride[0]);
  }
  if (size[0] > kMaxSize || size[1] > kMaxSize) {
    return std::nullopt;
  }
  if (last == 1) {
    return RowLayout{stride[1], stride[0], 0, uint32_t(size[0]), 1};
  }
  return RowLayout{stride[2], stride[1], stride[0], uint32_t(size[1]), uint32_t(size[0])};
}

namespace {

using Steps = c10::SmallVector<std::pair<int64_t, int64_t>, 6>;  // sizes and strides

// Innermost first. Leading dimensions of one element are left out, those that step evenly are one.
Steps steps_of(at::IntArrayRef sizes, at::IntArrayRef strides, int64_t kept) {
  Steps steps;
  const int64_t leading = int64_t(sizes.size()) - kept;
  for (int64_t i = int64_t(sizes.size()) - 1; i >= 0; --i) {
    if (i >= leading) {
      steps.emplace_back(sizes[i], sizes[i] == 1 ? 0 : strides[i]);
    } else if (sizes[i] != 1) {
      const bool evenly =
          int64_t(steps.size()) > kept && strides[i] == steps.back().first * steps.back().second;
      if (evenly) {
        steps.back().first *= sizes[i];
      } else {
        steps.emplace_back(sizes[i], strides[i]);
      }
    }
  }
  return steps;
}

}  // namespace

bool lie_alike(at::IntArrayRef sizes, at::IntArrayRef strides, at::IntArrayRef other_sizes,
               at::IntArrayRef other_strides, int64_t kept) {
  return int64_t(std::min(sizes.size(), other_sizes.size())) >= kept &&
         steps_of(sizes, strides, kept) == steps_of(other_sizes, other_strides, kept);
}

Footprint::Footprint(const at::Tensor& tensor)
    : begin(tensor.storage_offset() * tensor.element_size()),
      end(begin + tensor.element_size()),
      block(tensor.element_size()),
      overlaps_itself(false) {
  c10::SmallVector<std::pair<int64_t, int64_t>, 6> dimensions;  // steps and sizes
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) != 1) {
      dimensions.emplace_back(tensor.stride(i) * tensor.element_size(), tensor.size(i));
    }
  }
  std::sort(dimensions.begin(), dimensions.end());
  for (const auto& [step, size] : dimensions) {
    overlaps_itself = overlaps_itself || step < end - begin;
    if (steps.empty() && step == block) {
      block *= size;
    } else {
      steps.push_back(step);
    }
    end += step * (size - 1);
  }
}

bool are_apart(const Footprint& a, const Footprint& b) {
  if (a.end <= b.begin || b.end <= a.begin) {
    return true;
  }
  // Blocks begin at multiples of all steps from the first one: slices of one row, again and again.
  int64_t period = 0;
  for (const Footprint* footprint : {&a, &b}) {
    for (const int64_t step : footprint->steps) {
      period = std::gcd(period, step);
    }
  }
  if (period == 0) {
    return false;
  }
  const int64_t ahead = ((b.begin - a.begin) % period + period) % period;
  return ahead >= a.block && ahead + b.block <= period;
}

}  // namespace mlxnorm
