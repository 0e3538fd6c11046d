// What tests set inside the product's shared object, called through ctypes.
#include "../../csrc/mps/plan.h"

extern "C" __attribute__((visibility("default"))) void mlxnorm_set_max_grid_threads(int64_t most) {
  mlxnorm::mps::max_grid_threads = most;
}

extern "C" __attribute__((visibility("default"))) void mlxnorm_set_few_rows(int64_t rows) {
  mlxnorm::mps::few_rows = rows;
}
