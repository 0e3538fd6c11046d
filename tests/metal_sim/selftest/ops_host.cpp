// The formulas of ops.h in a host's C++. Reads scale, x, y, z and weight (float32, the number of
// elements is the argument) and writes the outputs of WeightedSum and of ProductAndSum.
#include "ops.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

struct Row {
  typedef selftest::Numbers<1> Values;

  const std::vector<float>* tensors;
  std::size_t index;
  float scale;

  Values input(int i) const { return {{tensors[i][index]}}; }
  Values weight() const { return {{tensors[selftest::kWeightBuffer][index]}}; }
};

template <typename Op>
bool write_outputs(Row row, std::size_t count) {
  for (int output = 0; output < Op::kOutputs; ++output) {
    for (row.index = 0; row.index < count; ++row.index) {
      const auto results = Op::finish(row, Op::first(row));
      if (std::fwrite(&results.values[output], sizeof(float), 1, stdout) != 1) return false;
    }
  }
  return true;
}

}  // namespace

int main(int, char** arguments) {
  const auto count = static_cast<std::size_t>(std::atoi(arguments[1]));
  float scale;
  if (std::fread(&scale, sizeof scale, 1, stdin) != 1) return 1;
  std::vector<float> tensors[selftest::kWeightBuffer + 1];
  for (auto& tensor : tensors) {
    tensor.resize(count);
    if (std::fread(tensor.data(), sizeof(float), count, stdin) != count) return 1;
  }
  const Row row = {tensors, 0, scale};
  const bool written = write_outputs<selftest::WeightedSum>(row, count) &&
                       write_outputs<selftest::ProductAndSum>(row, count);
  return written ? 0 : 1;
}
