// Multiplies grad_output into gradients that a loss computed in its forward pass.
//
// Those have the dtype of the loss, and are rounded to the input's dtype here: a mean over many voxels has gradients
// that float16 cannot hold until a GradScaler's factor is in them.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "common/checks.h"
#include "common/dtypes.h"
#include "common/tensors.h"
#include "cpu/support/capability.h"
#include "cpu/support/memory.h"
#include "cpu/support/parallel.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

#define USREG_KERNEL_BODY "cpu/saved_gradient/kernel.inc"
#include "cpu/support/for_each_isa.inc"

namespace usreg {
namespace {

constexpr const char* kOp = "scale_gradient";
constexpr int64_t kGrain = 1 << 15;

void check(const Tensor& grad_output, const Tensor& gradient, const Tensor& like) {
  check_on_cpu(kOp, "grad_output", grad_output);
  check_grad_output(kOp, grad_output, like, false);
  check_dtype(kOp, "gradient", gradient, real_dtype(like.scalar_type()));
  STD_TORCH_CHECK(same_shape(gradient, like), kOp, ": the gradient must have the input's shape, not ",
                  shape_text(gradient));
}

// Returns grad_output * gradient in the dtype of like. gradient: of the loss' dtype, as forward returned it;
// grad_output: scalar of that dtype; like: of the gradient's shape.
Tensor scale_gradient(const Tensor& grad_output, const Tensor& gradient, const Tensor& like) {
  check(grad_output, gradient, like);
  const Tensor source = as_contiguous(gradient);
  Tensor result = new_output(like, like.sizes(), like.scalar_type());
  dispatch_floating(like.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto factor = *static_cast<const Real<T>*>(grad_output.const_data_ptr());
    const auto* values = static_cast<const Real<T>*>(source.const_data_ptr());
    auto* scaled = static_cast<T*>(result.mutable_data_ptr());
    const auto scale = USREG_SELECT(scale_row<T, Real<T>>);
    parallel_for(like.numel(), kGrain,
                 [&](int64_t first, int64_t last) { scale(values + first, factor, scaled + first, last - first); });
  });
  return result;
}

// Multiplies grad_output into a gradient where it lies. gradient: contiguous, of a loss' dtype; grad_output: scalar of
// that dtype.
void scale_gradient_in_place(const Tensor& grad_output, Tensor gradient) {
  check(grad_output, gradient, gradient);
  STD_TORCH_CHECK(gradient.is_contiguous(), kOp, ": only a contiguous gradient can be scaled where it lies");
  dispatch_floating(gradient.scalar_type(), kOp, [&](auto tag) {
    using F = Real<typename decltype(tag)::type>;
    const auto factor = *static_cast<const F*>(grad_output.const_data_ptr());
    if (factor == 1) return;
    auto* values = static_cast<F*>(gradient.mutable_data_ptr());
    const auto scale = USREG_SELECT(scale_row<F, F>);
    parallel_for(gradient.numel(), kGrain,
                 [&](int64_t first, int64_t last) { scale(values + first, factor, values + first, last - first); });
  });
}

}  // namespace
}  // namespace usreg

// The schemas stand in Python (usreg_kernels/ops/saved_gradients.py).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("scale_gradient", TORCH_BOX(&usreg::scale_gradient));
  m.impl("scale_gradient_", TORCH_BOX(&usreg::scale_gradient_in_place));
}
