// The schema of every op. Each has an `.out` overload that returns nothing, which is the form that
// functionalization under torch.compile accepts.
#include <torch/library.h>

TORCH_LIBRARY(mlxnorm, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "rms_norm(Tensor x, Tensor? weight, float eps=1e-6, *, float weight_offset=0.0, "
      "str casting_mode=\"gemma\") -> Tensor",
      tags);
  m.def(
      "rms_norm.out(Tensor x, Tensor? weight, float eps=1e-6, *, float weight_offset=0.0, "
      "str casting_mode=\"gemma\", Tensor(a!) out) -> ()",
      tags);
}
