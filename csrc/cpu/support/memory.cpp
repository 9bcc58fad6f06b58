// Memory that a loop uses again.
//
// The memory of a tensor of more than some 30 MB goes back to the system when it is freed, and the next tensor's comes
// fresh from there, to be filled with zeros first, which may take several times as long as a kernel. A loop whose
// tensors have one shape lends those that it has done with: the outputs that follow are written there.

#include "cpu/support/memory.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/checks.h"

namespace usreg {
namespace {

thread_local std::vector<torch::stable::Tensor> spares;

// The next output of this thread that has the tensor's shape and dtype takes its memory.
void lend(const torch::stable::Tensor& tensor) {
  check_on_cpu("lend_memory", "tensor", tensor);
  STD_TORCH_CHECK(tensor.is_contiguous(), "lend_memory: the tensor must be contiguous");
  spares.push_back(tensor);
}

void end(const torch::stable::Tensor&) { spares.clear(); }

}  // namespace

std::optional<torch::stable::Tensor> take_spare(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  const auto fits = [&](const torch::stable::Tensor& tensor) {
    const auto own = tensor.sizes();
    return tensor.scalar_type() == dtype && std::equal(own.begin(), own.end(), sizes.begin(), sizes.end());
  };
  const auto found = std::find_if(spares.begin(), spares.end(), fits);
  if (found == spares.end()) return std::nullopt;
  const torch::stable::Tensor spare = *found;
  spares.erase(found);
  return spare;
}

}  // namespace usreg

// The schemas are in Python (usreg_kernels/lending.py).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("lend_memory", TORCH_BOX(&usreg::lend));
  m.impl("end_lending", TORCH_BOX(&usreg::end));
}
