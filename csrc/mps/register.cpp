#include "mps.h"

TORCH_LIBRARY_IMPL(mlxnorm, MPS, m) {
  mlxnorm::mps::register_on(m);
}
