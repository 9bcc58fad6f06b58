// Bending energy on GPUs.

#include "cuda/field_losses/bending.cuh"
#include "cuda/field_losses/launch.h"

namespace usreg {
namespace cuda {
namespace {

Tensor bending_forward(const Tensor& dvf, std::vector<double> weights, double divisor, int64_t reduction) {
  return field_loss_forward<BendingLoss>(dvf, bending_call(dvf, std::move(weights), divisor, reduction));
}

Tensor bending_backward(const Tensor& grad_output, const Tensor& dvf, std::vector<double> weights, double divisor,
                        int64_t reduction) {
  return field_loss_backward<BendingGradient>(grad_output, dvf,
                                              bending_call(dvf, std::move(weights), divisor, reduction));
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/bending_energy).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("bending_energy_native_forward", TORCH_BOX(&usreg::cuda::bending_forward));
  m.impl("bending_energy_native_backward", TORCH_BOX(&usreg::cuda::bending_backward));
}
