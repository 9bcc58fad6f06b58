// A step of Adam on a displacement field: its tensors and numbers, checked.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "common/adam.h"
#include "common/checks.h"

namespace usreg {

struct FieldAdamCall {
  static constexpr const char* kOp = "field_adam";

  int64_t samples, components, voxels;  // of (B, n, spatial...)
  double lr, beta1, beta2, eps;
  bool longest;  // lr is the length of the longest vector of each sample
  bool replace;  // the update is written to the field, else added

  // All but step: contiguous, of one shape, dtype (float32 or float64) and device. step: a float32 scalar.
  FieldAdamCall(const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& step,
                const Tensor& field, double lr_value, double beta1_value, double beta2_value, double eps_value,
                bool scales_longest, bool replaces)
      : lr(lr_value),
        beta1(beta1_value),
        beta2(beta2_value),
        eps(eps_value),
        longest(scales_longest),
        replace(replaces) {
    check_pair(kOp, "grad", grad, "exp_avg", exp_avg);
    check_pair(kOp, "grad", grad, "exp_avg_sq", exp_avg_sq);
    check_pair(kOp, "grad", grad, "field", field);
    STD_TORCH_CHECK(
        grad.is_contiguous() && exp_avg.is_contiguous() && exp_avg_sq.is_contiguous() && field.is_contiguous(), kOp,
        ": tensors must be contiguous");
    STD_TORCH_CHECK(grad.scalar_type() == ScalarType::Float || grad.scalar_type() == ScalarType::Double, kOp,
                    ": dtype must be float32 or float64, not ", torch::headeronly::toString(grad.scalar_type()));
    check_same_device(kOp, "step", step, grad);
    check_dtype(kOp, "step", step, ScalarType::Float);
    STD_TORCH_CHECK(step.dim() == 0, kOp, ": step must be a scalar, not of shape ", shape_text(step));
    samples = grad.size(0);
    components = grad.size(1);
    voxels = samples * components == 0 ? 0 : grad.numel() / (samples * components);
  }

  int64_t numel() const { return samples * components * voxels; }

  template <class R>
  AdamRates<R> rates() const {
    return adam_rates<R>(beta1, beta2, eps);
  }
};

// Calls function(TypeTag<T>()) with the C++ type of a field's dtype.
template <class Function>
void dispatch_field_adam(const Tensor& field, const Function& function) {
  if (field.scalar_type() == ScalarType::Double) return function(TypeTag<double>());
  function(TypeTag<float>());
}

}  // namespace usreg
