// Gradient smoothness on GPUs.

#include "cuda/field_losses_launch.h"

namespace usreg {
namespace cuda {
namespace {

constexpr FieldLossKind kForward = FieldLossKind::kForwardDifferences;
constexpr FieldLossKind kCentral = FieldLossKind::kCentralDifferences;

Tensor smoothness_forward(const Tensor& dvf, bool magnitude, bool central, std::vector<double> scales,
                          int64_t reduction) {
  const FieldLossCall call = smoothness_call(dvf, magnitude, central, scales, reduction);
  if (central) {
    return magnitude ? field_loss_forward<kCentral, Penalty::kMagnitude>(dvf, call)
                     : field_loss_forward<kCentral, Penalty::kSquare>(dvf, call);
  }
  return magnitude ? field_loss_forward<kForward, Penalty::kMagnitude>(dvf, call)
                   : field_loss_forward<kForward, Penalty::kSquare>(dvf, call);
}

Tensor smoothness_backward(const Tensor& grad_output, const Tensor& dvf, bool magnitude, bool central,
                           std::vector<double> scales, int64_t reduction) {
  const FieldLossCall call = smoothness_call(dvf, magnitude, central, scales, reduction);
  if (central) {
    return magnitude ? field_loss_backward<kCentral, Penalty::kMagnitude>(grad_output, dvf, call)
                     : field_loss_backward<kCentral, Penalty::kSquare>(grad_output, dvf, call);
  }
  return magnitude ? field_loss_backward<kForward, Penalty::kMagnitude>(grad_output, dvf, call)
                   : field_loss_backward<kForward, Penalty::kSquare>(grad_output, dvf, call);
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schemas stand in Python (usreg_kernels/ops/gradient_smoothness).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("gradient_smoothness_native_forward", TORCH_BOX(&usreg::cuda::smoothness_forward));
  m.impl("gradient_smoothness_native_backward", TORCH_BOX(&usreg::cuda::smoothness_backward));
}
