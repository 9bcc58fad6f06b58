// The Jacobian determinant and the folding loss on GPUs: the launchers of jacobian.cuh.

#include <type_traits>
#include <vector>

#include "common/jacobian_call.h"
#include "cuda/jacobian/jacobian.cuh"
#include "cuda/support/torch_support.h"

namespace usreg {
namespace cuda {
namespace {

template <class T>
JacobianField<T> make_field(const Tensor& field, const JacobianCall& call) {
  JacobianField<T> ddf = {};
  ddf.field = data<T>(field);
  ddf.batch = call.batch;
  for (int axis = 0; axis < 3; ++axis) {
    ddf.size[axis] = call.size[axis];
    ddf.scale[axis] = static_cast<Real<T>>(call.scale[axis]);
  }
  const int64_t stride = call.dims == 3 ? ddf.plane() : call.dims == 2 ? ddf.size[2] : 1;
  STD_TORCH_CHECK(stride <= kMostJacobianStride && ddf.size[0] <= kMostJacobianStride, call.op,
                  ": a plane of a volume, or a row of an image, has at most ", kMostJacobianStride,
                  " voxels, and a volume as many planes, not ", stride, " and ", ddf.size[0]);
  cut_into_blocks(ddf);
  return ddf;
}

// Calls function(ddf, dims) with the field as kernels take it, and its number of axes as a type.
template <class Function>
void with_field(const Tensor& field, const JacobianCall& call, const Function& function) {
  dispatch_elements(field.scalar_type(), call.op, [&](auto tag) {
    const auto ddf = make_field<typename decltype(tag)::type>(field, call);
    if (call.dims == 1) return function(ddf, std::integral_constant<int, 1>());
    if (call.dims == 2) return function(ddf, std::integral_constant<int, 2>());
    function(ddf, std::integral_constant<int, 3>());
  });
}

// Returns the map, or for the loss what it is reduced to; float64 for float64 fields, else float32.
Tensor forward(const Tensor& tensor, const JacobianCall& call) {
  const Tensor field = as_contiguous(tensor);
  Tensor output = torch::stable::new_empty(field, call.sizes(), real_dtype(field.scalar_type()));
  if (field.numel() == 0) {
    if (call.folds) fill_empty_loss(output, call.reduction);
    return output;
  }
  TensorLaunches launches(field);
  with_field(field, call, [&](const auto& ddf, auto dims) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(ddf.field)>>;
    using R = Real<T>;
    constexpr int kDims = decltype(dims)::value;
    const auto margin = static_cast<R>(call.margin);
    R* const result = mutable_data<R>(output);
    if (!call.folds) {
      launches.run(write_determinants<kDims, T>, ddf.blocks(), kJacobianThreads, 0, ddf, result);
    } else if (call.keeps_map()) {
      launches.run(sum_shortfalls<kDims, true, T>, ddf.blocks(), kJacobianThreads, 0, ddf, margin, result);
    } else {
      const Tensor partials = torch::stable::new_empty(field, {ddf.blocks()}, output.scalar_type());
      R* const sums = mutable_data<R>(partials);
      const size_t shared = block_sum_bytes<R>(kJacobianThreads);
      launches.run(sum_shortfalls<kDims, false, T>, ddf.blocks(), kJacobianThreads, shared, ddf, margin, sums);
      launch_finish<R>(launches, sums, nullptr, ddf.blocks(), 1, call.divisor, result, nullptr);
    }
  });
  launches.check(call.op);
  return output;
}

// Returns the gradient, of the field's dtype and shape. grad_output: of the output's dtype and shape.
Tensor backward(const Tensor& grad_output, const Tensor& tensor, const JacobianCall& call) {
  call.check_grad_output(grad_output, tensor);
  const Tensor field = as_contiguous(tensor), grad = as_contiguous(grad_output);
  Tensor gradient = torch::stable::new_empty(field, field.sizes());
  if (field.numel() == 0) return gradient;
  TensorLaunches launches(field);
  with_field(field, call, [&](const auto& ddf, auto dims) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(ddf.field)>>;
    using R = Real<T>;
    constexpr int kDims = decltype(dims)::value;
    T* const target = mutable_data<T>(gradient);
    const auto run = [&](auto kernel, auto... arguments) {
      launches.run(kernel, ddf.blocks(), kJacobianThreads, 0, ddf, arguments...);
    };
    if (!call.folds) return run(write_jacobian_gradient<kDims, false, T>, data<R>(grad), target);
    const Tensor slopes = torch::stable::new_empty(field, {call.batch * call.voxels()}, grad.scalar_type());
    R* const found = mutable_data<R>(slopes);
    const auto margin = static_cast<R>(call.margin), factor = static_cast<R>(1 / call.divisor);
    if (call.keeps_map()) {
      run(write_slopes<kDims, true, T>, margin, data<R>(grad), factor, found);
    } else {
      run(write_slopes<kDims, false, T>, margin, data<R>(grad), factor, found);
    }
    run(write_jacobian_gradient<kDims, true, T>, static_cast<const R*>(found), target);
  });
  launches.check(call.op);
  return gradient;
}

constexpr const char* kDeterminant = "jacobian_determinant";
constexpr const char* kFolding = "folding";

Tensor determinant_forward(const Tensor& ddf, std::vector<double> scales) {
  return forward(ddf, JacobianCall(kDeterminant, ddf, scales));
}

Tensor determinant_backward(const Tensor& grad_output, const Tensor& ddf, std::vector<double> scales) {
  return backward(grad_output, ddf, JacobianCall(kDeterminant, ddf, scales));
}

Tensor folding_forward(const Tensor& ddf, std::vector<double> scales, double margin, int64_t reduction) {
  return forward(ddf, JacobianCall(kFolding, ddf, scales, margin, reduction));
}

Tensor folding_backward(const Tensor& grad_output, const Tensor& ddf, std::vector<double> scales, double margin,
                        int64_t reduction) {
  return backward(grad_output, ddf, JacobianCall(kFolding, ddf, scales, margin, reduction));
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/jacobian_determinant and folding).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("jacobian_determinant_native_forward", TORCH_BOX(&usreg::cuda::determinant_forward));
  m.impl("jacobian_determinant_native_backward", TORCH_BOX(&usreg::cuda::determinant_backward));
  m.impl("folding_native_forward", TORCH_BOX(&usreg::cuda::folding_forward));
  m.impl("folding_native_backward", TORCH_BOX(&usreg::cuda::folding_backward));
}
