// A step of Adam on GPUs: the launcher of field_adam.cuh.

#include "common/field_adam_call.h"
#include "cuda/field_adam/field_adam.cuh"
#include "cuda/support/torch_support.h"

namespace usreg {
namespace cuda {
namespace {

// Updates exp_avg, exp_avg_sq and step, and writes the update to the field, or adds it.
void field_adam_step(const Tensor& grad, Tensor exp_avg, Tensor exp_avg_sq, Tensor step, Tensor field, double lr,
                     double beta1, double beta2, double eps, bool longest, bool replace) {
  const FieldAdamCall call(grad, exp_avg, exp_avg_sq, step, field, lr, beta1, beta2, eps, longest, replace);
  TensorLaunches launches(grad);
  dispatch_field_adam(grad, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const AdamField<T> tensors = {data<T>(grad),
                                  mutable_data<T>(exp_avg),
                                  mutable_data<T>(exp_avg_sq),
                                  mutable_data<T>(field),
                                  call.samples,
                                  call.components,
                                  call.voxels,
                                  call.rates<T>()};
    const Tensor memory = torch::stable::new_empty(grad, {field_adam_memory(tensors)});
    const auto launch = call.replace ? launch_field_adam<T, true> : launch_field_adam<T, false>;
    launch(launches, tensors, lr, beta1, beta2, call.longest, mutable_data<float>(step), mutable_data<T>(memory));
  });
  launches.check(FieldAdamCall::kOp);
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schema is in Python (usreg_kernels/ops/field_adam/native.py).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("field_adam_native_step", TORCH_BOX(&usreg::cuda::field_adam_step));
}
