// The MIND-SSC descriptor, and the loss of two images' descriptors, on CPUs; mind.h explains the march.
//
// The forward pass of a mean or a sum computes the gradients along with the loss, but for the factor grad_output
// (usreg_kernels/ops/saved_gradients.py). The gradients of a map are computed by the backward pass.

#include "cpu/mind/mind.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/dtypes.h"
#include "common/reduction.h"
#include "common/tensors.h"
#include "cpu/support/capability.h"
#include "cpu/support/memory.h"
#include "cpu/support/tasks.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

#define USREG_KERNEL_BODY "cpu/mind/kernel.inc"
#include "cpu/support/for_each_isa.inc"

namespace usreg {
namespace mind {
namespace {

constexpr int64_t kLargest = 32;  // of radius and dilation: LARGEST_RADIUS in usreg_kernels/ops/mind_ssc/pairs.py

void check_image(const char* op, const Tensor& image, int64_t radius, int64_t dilation) {
  check_on_cpu(op, "the image", image);
  STD_TORCH_CHECK(image.dim() == 4 || image.dim() == 5, op, ": images must be (B, C, spatial...) with 2 or 3 spatial ",
                  "dims, not ", shape_text(image));
  STD_TORCH_CHECK(0 <= radius && radius <= kLargest && 1 <= dilation && dilation <= kLargest, op,
                  ": radius must be from 0 to 32 and dilation from 1 to 32, not ", radius, " and ", dilation);
}

// What all calls share; image: contiguous.
Problem make_problem(const Tensor& image, int64_t radius, int64_t dilation) {
  const bool is_plane = image.dim() == 4;
  Problem problem = {};
  problem.pairs = is_plane ? kPairsOfPlane : kMostPairs;
  problem.volumes = image.size(0) * image.size(1);
  for (int axis = 0; axis < 3; ++axis) {
    const bool exists = axis > 0 || !is_plane;
    problem.size[axis] = exists ? image.size(image.dim() - 3 + axis) : 1;
    problem.radius[axis] = exists ? radius : 0;
    problem.dilation[axis] = exists ? dilation : 0;
  }
  problem.images = 1;
  problem.image[0] = image.const_data_ptr();
  problem.channels_per_mask = 1;
  problem.scale = 1;
  return problem;
}

// Runs the marches of all volumes; returns a sum for each of their rows, where there is one.
template <class T>
std::vector<double> march(const char* op, const Problem& problem) {
  constexpr auto kSize = static_cast<int64_t>(sizeof(Real<T>));
  const Plan plan(problem, torch::stable::get_num_threads(), kSize);
  const Layout layout(problem, plan.most_rows, vector_bytes() / kSize);
  std::vector<double> sums(problem.volumes * problem.size[0] * problem.size[1]);
  const auto run = USREG_SELECT(mind::run_task<T, Real<T>>);
  for_each_task(op, plan.count, layout.total * kSize, [&](int64_t index, void* memory) {
    run(problem, layout, plan.task(problem, index), memory, sums.data());
  });
  return sums;
}

// The mean of V of each volume of an image.
template <class T>
std::vector<double> mean_variances(const char* op, const Tensor& image, int64_t radius, int64_t dilation) {
  const Problem problem = make_problem(image, radius, dilation);
  const std::vector<double> sums = march<T>(op, problem);
  const int64_t rows = problem.size[0] * problem.size[1];
  std::vector<double> means(problem.volumes);
  for (int64_t i = 0; i < problem.volumes; ++i) {
    for (int64_t row = 0; row < rows; ++row) means[i] += sums[i * rows + row];
    means[i] /= static_cast<double>(problem.voxels());
  }
  return means;
}

// ---- the descriptor -------------------------------------------------------------------------------------------------

constexpr const char* kDescriptor = "mind_ssc";

std::vector<int64_t> descriptor_sizes(const Tensor& image) {
  std::vector<int64_t> sizes = {image.size(0), image.size(1) * (image.dim() == 4 ? kPairsOfPlane : kMostPairs)};
  for (int64_t axis = 2; axis < image.dim(); ++axis) sizes.push_back(image.size(axis));
  return sizes;
}

// Returns (B, K C, spatial...), float64 for float64 images, else float32.
Tensor descriptor_forward(const Tensor& image_arg, int64_t radius, int64_t dilation) {
  check_image(kDescriptor, image_arg, radius, dilation);
  const Tensor image = as_contiguous(image_arg);
  Tensor output = new_output(image, descriptor_sizes(image), real_dtype(image.scalar_type()));
  if (image.numel() == 0) return output;
  dispatch_floating(image.scalar_type(), kDescriptor, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const std::vector<double> means = mean_variances<T>(kDescriptor, image, radius, dilation);
    Problem problem = make_problem(image, radius, dilation);
    problem.mean[0] = means.data();
    problem.descriptor = output.mutable_data_ptr();
    march<T>(kDescriptor, problem);
  });
  return output;
}

// Returns the gradient, of the image's dtype and shape. grad_output: of the descriptor's dtype and shape.
Tensor descriptor_backward(const Tensor& grad_output, const Tensor& image_arg, int64_t radius, int64_t dilation) {
  check_image(kDescriptor, image_arg, radius, dilation);
  check_on_cpu(kDescriptor, "grad_output", grad_output);
  check_dtype(kDescriptor, "grad_output", grad_output, real_dtype(image_arg.scalar_type()));
  const std::vector<int64_t> sizes = descriptor_sizes(image_arg);
  bool fits = grad_output.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = grad_output.size(i) == sizes[i];
  STD_TORCH_CHECK(fits, kDescriptor, ": grad_output must have the shape of the output, not ", shape_text(grad_output));
  const Tensor image = as_contiguous(image_arg), grad = as_contiguous(grad_output);
  Tensor gradient = new_output(image, image.sizes(), image.scalar_type());
  if (image.numel() == 0) return gradient;
  dispatch_floating(image.scalar_type(), kDescriptor, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const std::vector<double> means = mean_variances<T>(kDescriptor, image, radius, dilation);
    Problem problem = make_problem(image, radius, dilation);
    problem.mean[0] = means.data();
    problem.descriptor_grad = grad.const_data_ptr();
    problem.gradient[0] = gradient.mutable_data_ptr();
    problem.gradient_of_input_type = true;
    march<T>(kDescriptor, problem);
  });
  return gradient;
}

// ---- the loss -------------------------------------------------------------------------------------------------------

constexpr const char* kLoss = "mind";

// The arguments that forward and backward share, checked.
struct LossCall {
  LossCall(const Tensor& pred_arg, const Tensor& target_arg, const std::optional<Tensor>& mask_arg, int64_t radius_arg,
           int64_t dilation_arg, double divisor_arg, int64_t reduction_value)
      : radius(radius_arg),
        dilation(dilation_arg),
        divisor(divisor_arg),
        reduction(check_reduction(kLoss, reduction_value)) {
    check_image(kLoss, pred_arg, radius, dilation);
    check_pair(kLoss, "pred", pred_arg, "target", target_arg);
    if (mask_arg.has_value()) usreg::check_mask(kLoss, *mask_arg, pred_arg);
    pred = as_contiguous(pred_arg);
    target = as_contiguous(target_arg);
    mask = as_contiguous(mask_arg);
  }

  ScalarType dtype() const { return pred.scalar_type(); }
  bool keeps_map() const { return reduction == Reduction::kNone; }

  // Runs the marches with what `set` adds to the problem; returns the sum of the weighted loss.
  template <class T, class Set>
  double run(const Set& set) const {
    const std::vector<double> means[2] = {mean_variances<T>(kLoss, pred, radius, dilation),
                                          mean_variances<T>(kLoss, target, radius, dilation)};
    Problem problem = make_problem(pred, radius, dilation);
    problem.images = 2;
    problem.image[1] = target.const_data_ptr();
    for (int i = 0; i < 2; ++i) problem.mean[i] = means[i].data();
    if (mask.has_value()) {
      problem.mask = mask->const_data_ptr();
      problem.channels_per_mask = pred.size(1) / mask->size(1);
    }
    problem.scale = 1 / divisor;
    set(problem);
    double total = 0;
    for (double sum : march<T>(kLoss, problem)) total += sum;
    return total;
  }

  Tensor pred, target;
  std::optional<Tensor> mask;
  int64_t radius, dilation;
  double divisor;
  Reduction reduction;
};

void set_gradients(Problem& problem, const std::optional<Tensor>& to_pred, const std::optional<Tensor>& to_target) {
  if (to_pred.has_value()) problem.gradient[0] = to_pred->mutable_data_ptr();
  if (to_target.has_value()) problem.gradient[1] = to_target->mutable_data_ptr();
}

// Returns (loss, gradient to pred, gradient to target). loss: scalar for mean and sum, of the input's shape for none;
// float64 for float64 input, else float32. Gradients: of the loss' dtype and the input's shape, of a loss whose
// reduction is mean or sum; none where not asked for. divisor: of the sum over all voxels.
std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>> loss_forward(const Tensor& pred, const Tensor& target,
                                                                              const std::optional<Tensor>& mask,
                                                                              int64_t radius, int64_t dilation,
                                                                              double divisor, int64_t reduction,
                                                                              bool pred_grad, bool target_grad) {
  const LossCall call(pred, target, mask, radius, dilation, divisor, reduction);
  STD_TORCH_CHECK(!(call.keeps_map() && (pred_grad || target_grad)), kLoss,
                  ": the gradient of a map needs grad_output first");
  const ScalarType loss_dtype = real_dtype(call.dtype());
  Tensor loss = call.keeps_map() ? new_output(pred, pred.sizes(), loss_dtype) : new_output(pred, {}, loss_dtype);
  const std::optional<Tensor> to_pred = new_gradient(pred, pred_grad, loss_dtype);
  const std::optional<Tensor> to_target = new_gradient(pred, target_grad, loss_dtype);

  dispatch_floating(call.dtype(), kLoss, [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* result = static_cast<Real<T>*>(loss.mutable_data_ptr());
    if (pred.numel() == 0) {
      const bool mean = call.reduction == Reduction::kMean;
      if (!call.keeps_map()) *result = mean ? std::numeric_limits<Real<T>>::quiet_NaN() : Real<T>(0);
      return;
    }
    const double total = call.run<T>([&](Problem& problem) {
      if (call.keeps_map()) problem.loss_map = result;
      set_gradients(problem, to_pred, to_target);
    });
    if (!call.keeps_map()) *result = static_cast<Real<T>>(total / divisor);
  });
  return {loss, to_pred, to_target};
}

// Returns (gradient to pred, gradient to target), of the input's dtype and shape; none where not asked for.
// Takes in what forward does, and grad_output, of the loss' dtype and shape.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> loss_backward(
    const Tensor& grad_output, const Tensor& pred, const Tensor& target, const std::optional<Tensor>& mask,
    int64_t radius, int64_t dilation, double divisor, int64_t reduction, bool pred_grad, bool target_grad) {
  const LossCall call(pred, target, mask, radius, dilation, divisor, reduction);
  check_on_cpu(kLoss, "grad_output", grad_output);
  check_grad_output(kLoss, grad_output, pred, call.keeps_map());
  const Tensor grad = as_contiguous(grad_output);
  const std::optional<Tensor> to_pred = new_gradient(pred, pred_grad, call.dtype());
  const std::optional<Tensor> to_target = new_gradient(pred, target_grad, call.dtype());
  if (pred.numel() == 0 || !(pred_grad || target_grad)) return {to_pred, to_target};

  dispatch_floating(call.dtype(), kLoss, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* factors = static_cast<const Real<T>*>(grad.const_data_ptr());
    call.run<T>([&](Problem& problem) {
      if (call.keeps_map()) {
        problem.grad_map = factors;
      } else {
        problem.scale *= *factors;
      }
      problem.gradient_of_input_type = true;
      set_gradients(problem, to_pred, to_target);
    });
  });
  return {to_pred, to_target};
}

}  // namespace
}  // namespace mind
}  // namespace usreg

// The schemas stand in Python (usreg_kernels/ops/mind_ssc and mind).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("mind_ssc_native_forward", TORCH_BOX(&usreg::mind::descriptor_forward));
  m.impl("mind_ssc_native_backward", TORCH_BOX(&usreg::mind::descriptor_backward));
  m.impl("mind_native_forward", TORCH_BOX(&usreg::mind::loss_forward));
  m.impl("mind_native_backward", TORCH_BOX(&usreg::mind::loss_backward));
}
