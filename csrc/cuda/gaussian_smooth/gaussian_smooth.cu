// Gaussian smoothing on GPUs: the launcher of gaussian_smooth.cuh.

#include <vector>

#include "common/warp_codes.h"
#include "cuda/gaussian_smooth/gaussian_smooth.cuh"
#include "cuda/support/torch_support.h"

namespace usreg {
namespace cuda {
namespace {

constexpr const char* kOp = "gaussian_smooth";

using Weights = std::vector<double>;  // at distances 0, 1, ...

Outside to_outside(Padding padding) {
  if (padding == Padding::kBorder) return Outside::kBorder;
  return padding == Padding::kZeros ? Outside::kZeros : Outside::kReflection;
}

// The filters of the axes that are to be filtered.
template <class R>
std::vector<SmoothingAxis<R>> make_axes(const Tensor& x, const Weights* const weights[3], Padding padding,
                                        bool adjoint) {
  std::vector<SmoothingAxis<R>> axes;
  for (int64_t dim = 2; dim < x.dim(); ++dim) {
    const Weights& given = *weights[dim + 3 - x.dim()];
    if (given.size() == 1) continue;
    SmoothingAxis<R> axis = {1,       x.size(dim), 1, static_cast<int>(given.size()) - 1, to_outside(padding),
                             adjoint, {},          {}};
    for (int64_t other = 0; other < x.dim(); ++other) {
      if (other != dim) (other < dim ? axis.outer : axis.width) *= x.size(other);
    }
    double beyond = 0;
    for (int k = axis.radius; k >= 0; --k) {
      axis.weights[k] = static_cast<R>(given[k]);
      axis.tails[k] = static_cast<R>(beyond);
      beyond += given[k];
    }
    axes.push_back(axis);
  }
  return axes;
}

void check(const Tensor& x, const Weights* const weights[3]) {
  STD_TORCH_CHECK(x.dim() >= 3 && x.dim() <= 5, kOp, ": x must be (B, C, spatial...) with 1, 2 or 3 spatial dims, not ",
                  shape_text(x));
  for (int axis = 0; axis < 3; ++axis) {
    const size_t count = weights[axis]->size();
    STD_TORCH_CHECK(count >= 1 && count <= kMostRadius + 1, kOp, ": an axis needs 1 to ", kMostRadius + 1,
                    " weights, not ", count);
    STD_TORCH_CHECK(axis >= 5 - x.dim() || count == 1, kOp, ": an axis that is not there has one weight");
  }
}

// Fills output with the filtered input; between axes, values are of type R.
template <class R, class In, class Out>
void filter(TensorLaunches& launches, const std::vector<SmoothingAxis<R>>& axes, const Tensor& input,
            const Tensor& output) {
  if (axes.size() == 1) return launch_filter(launches, axes[0], data<In>(input), mutable_data<Out>(output));
  const ScalarType real = real_dtype(input.scalar_type());
  Tensor between = torch::stable::new_empty(input, input.sizes(), real);
  launch_filter(launches, axes[0], data<In>(input), mutable_data<R>(between));
  if (axes.size() == 3) {
    Tensor next = torch::stable::new_empty(input, input.sizes(), real);
    launch_filter(launches, axes[1], data<R>(between), mutable_data<R>(next));
    between = next;
  }
  launch_filter(launches, axes.back(), data<R>(between), mutable_data<Out>(output));
}

// Returns the smoothed image: float64 for float64, else float32.
Tensor smooth_forward(const Tensor& x, Weights weights_z, Weights weights_y, Weights weights_x, int64_t padding_mode) {
  const Weights* const weights[3] = {&weights_z, &weights_y, &weights_x};
  const Padding padding = check_padding(kOp, padding_mode);
  check(x, weights);
  const Tensor input = as_contiguous(x);
  Tensor output = torch::stable::new_empty(input, input.sizes(), real_dtype(input.scalar_type()));
  if (input.numel() == 0) return output;
  TensorLaunches launches(input);
  dispatch_elements(input.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const auto axes = make_axes<R>(input, weights, padding, /*adjoint=*/false);
    if (axes.empty()) {
      torch::stable::copy_(output, input);
    } else {
      filter<R, T, R>(launches, axes, input, output);
    }
  });
  launches.check(kOp);
  return output;
}

// Returns the gradient of x, of its dtype and shape, which is all that is read of x.
Tensor smooth_backward(const Tensor& grad_output, const Tensor& x, Weights weights_z, Weights weights_y,
                       Weights weights_x, int64_t padding_mode) {
  const Weights* const weights[3] = {&weights_z, &weights_y, &weights_x};
  const Padding padding = check_padding(kOp, padding_mode);
  check(x, weights);
  check_grad_output(kOp, grad_output, x, true);
  const Tensor input = as_contiguous(grad_output);
  Tensor output = torch::stable::new_empty(input, x.sizes(), x.scalar_type());
  if (input.numel() == 0) return output;
  TensorLaunches launches(input);
  dispatch_elements(x.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const auto axes = make_axes<R>(input, weights, padding, /*adjoint=*/true);
    if (axes.empty()) {
      torch::stable::copy_(output, input);
    } else {
      filter<R, R, T>(launches, axes, input, output);
    }
  });
  launches.check(kOp);
  return output;
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/gaussian_smooth).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("gaussian_smooth_native_forward", TORCH_BOX(&usreg::cuda::smooth_forward));
  m.impl("gaussian_smooth_native_backward", TORCH_BOX(&usreg::cuda::smooth_backward));
}
