#include "split.h"

#include <numeric>
#include <vector>

#include "parallel.h"
#include "scratch.h"

namespace mlxnorm::cpu {

bool worth_splitting(const NormLayout& layout) {
  constexpr int64_t kLongRow = int64_t(1) << 20;
  return layout.dim >= kLongRow && layout.rows < at::get_num_threads() && !at::in_parallel_region();
}

void run_in_parts(const NormKernel& kernel, const NormArguments& arguments) {
  const PartKernel& of_part = kernel.of_part;
  const int64_t dim = arguments.layout.dim;
  Scratch scratch(kernel.scratch_rows * scratch_size(dim));
  std::vector<float> sums(size_t(dim / of_part.run_length + 1));
  RowPart row{.sums = sums.data(), .scratch = scratch.floats()};
  const auto pass_over_row = [&] {
    parallel_rows(int64_t(sums.size()), of_part.run_length, [&](int64_t begin, int64_t end) {
      RowPart part = row;
      part.begin = begin;
      part.end = end;
      of_part.run(arguments, part);
    });
  };
  for (row.row = 0; row.row < arguments.layout.rows; ++row.row) {
    for (row.pass = 0; row.pass < of_part.sums; ++row.pass) {
      pass_over_row();
      // As sum_of_squares in isa/reduce.h: what whole runs leave is first.
      row.sum = std::accumulate(sums.begin(), sums.end() - 1, double(sums.back()));
    }
    pass_over_row();
  }
}

}  // namespace mlxnorm::cpu
