// Gradient smoothness on GPUs.

#include "cuda/field_losses/launch.h"
#include "cuda/field_losses/smoothness.cuh"

namespace usreg {
namespace cuda {
namespace {

template <bool kCentral, Penalty kPenalty>
struct Smoothness {
  template <class T>
  using Loss = SmoothnessLoss<kCentral, kPenalty, T>;
  template <bool kHasMap, class T>
  using Gradient = SmoothnessGradient<kCentral, kPenalty, kHasMap, T>;
};

// Calls function(Smoothness<...>()) with the scheme and the penalty of a call.
template <class Function>
Tensor dispatch_smoothness(const FieldLossCall& call, const Function& function) {
  constexpr Penalty kSquare = Penalty::kSquare, kMagnitude = Penalty::kMagnitude;
  const bool magnitude = call.penalty == kMagnitude;
  if (call.kind == FieldLossKind::kCentralDifferences) {
    return magnitude ? function(Smoothness<true, kMagnitude>()) : function(Smoothness<true, kSquare>());
  }
  return magnitude ? function(Smoothness<false, kMagnitude>()) : function(Smoothness<false, kSquare>());
}

Tensor smoothness_forward(const Tensor& dvf, bool magnitude, bool central, std::vector<double> weights, double divisor,
                          int64_t reduction) {
  const FieldLossCall call = smoothness_call(dvf, magnitude, central, std::move(weights), divisor, reduction);
  return dispatch_smoothness(call,
                             [&](auto kind) { return field_loss_forward<decltype(kind)::template Loss>(dvf, call); });
}

Tensor smoothness_backward(const Tensor& grad_output, const Tensor& dvf, bool magnitude, bool central,
                           std::vector<double> weights, double divisor, int64_t reduction) {
  const FieldLossCall call = smoothness_call(dvf, magnitude, central, std::move(weights), divisor, reduction);
  return dispatch_smoothness(
      call, [&](auto kind) { return field_loss_backward<decltype(kind)::template Gradient>(grad_output, dvf, call); });
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/gradient_smoothness).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("gradient_smoothness_native_forward", TORCH_BOX(&usreg::cuda::smoothness_forward));
  m.impl("gradient_smoothness_native_backward", TORCH_BOX(&usreg::cuda::smoothness_backward));
}
