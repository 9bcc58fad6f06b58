// Local normalised cross-correlation on CPUs, forward and backward; lncc.h explains the march over the volume.
//
// Forward computes the loss together with the gradients that backward will be asked for, without the factor
// grad_output, which backward multiplies in before it rounds to the input's dtype: a mean over many voxels has
// gradients that float16 cannot hold until a GradScaler's factor is in them. Where forward saved no gradient (for
// reduction "none", whose grad_output is a map, or to spare the memory), backward marches once more.

#include "cpu/lncc/lncc.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/dtypes.h"
#include "common/reduction.h"
#include "common/tensors.h"
#include "cpu/lncc/arguments.h"
#include "cpu/support/capability.h"
#include "cpu/support/memory.h"
#include "cpu/support/parallel.h"
#include "cpu/support/tasks.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

#define USREG_KERNEL_BODY "cpu/lncc/kernel.inc"
#include "cpu/support/for_each_isa.inc"

namespace usreg {
namespace {

using lncc::Arguments;
using lncc::kOp;
using lncc::Problem;

// Runs the march; returns the sum of the weighted correlation.
template <class T>
double march(const Problem& problem) {
  using F = Real<T>;
  const int64_t threads = torch::stable::get_num_threads();
  const lncc::Plan plan(problem, sizeof(F), threads);
  const lncc::Layout layout(problem, plan, sizeof(F), vector_bytes());
  const int64_t losses_per_channel = plan.z_blocks * plan.y_blocks;
  std::vector<double> losses(problem.channels * losses_per_channel);
  const auto run = USREG_SELECT(lncc::run_task<T, F>);
  for_each_task(kOp, plan.tasks, layout.bytes, [&](int64_t index, void* scratch) {
    const lncc::Task task = plan.task(index);
    run(problem, plan, layout, task, scratch, losses.data() + task.channel * losses_per_channel);
  });
  double total = 0;
  for (double loss : losses) total += loss;
  return total;
}

// The sum of the mask over the voxels of all channels, 1 if that is 0.
template <class F>
double mask_weight(const Tensor& mask, int64_t channels_per_mask) {
  const auto* values = static_cast<const F*>(mask.const_data_ptr());
  constexpr int64_t kBlock = 1 << 16;
  const int64_t size = mask.numel(), blocks = (size + kBlock - 1) / kBlock;
  std::vector<double> sums(blocks);
  const auto sum = USREG_SELECT(lncc::sum_row<F>);
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      sums[block] = sum(values + block * kBlock, std::min(kBlock, size - block * kBlock));
    }
  });
  double total = 0;
  for (double part : sums) total += part;
  return total == 0 ? 1 : total * channels_per_mask;
}

// What the sum over all voxels is divided by.
template <class F>
double divisor(const Arguments& arguments, const Problem& problem) {
  if (arguments.reduction != Reduction::kMean) return 1;
  if (!arguments.mask.has_value()) return static_cast<double>(arguments.pred.numel());
  return mask_weight<F>(*arguments.mask, problem.channels_per_mask);
}

// Has the march write the gradients that there are. To compute only the one to the target, the inputs trade places.
void set_gradients(Problem& problem, const std::optional<Tensor>& to_pred, const std::optional<Tensor>& to_target) {
  if (to_pred.has_value()) problem.pred_grad = to_pred->mutable_data_ptr();
  if (!to_target.has_value()) return;
  if (to_pred.has_value()) {
    problem.target_grad = to_target->mutable_data_ptr();
  } else {
    std::swap(problem.pred, problem.target);
    problem.pred_grad = to_target->mutable_data_ptr();
  }
}

// Returns (loss, gradient to pred, gradient to target). loss: scalar for mean and sum, of the input's shape for none;
// float64 for float64 input, else float32. Gradients: of the loss' dtype and the input's shape, of a loss whose
// reduction is mean or sum; none where not asked for. window_*: the weights along an axis; volume: what turns
// a window's sum into its mean.
std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>> lncc_forward(
    const Tensor& pred, const Tensor& target, const std::optional<Tensor>& mask, std::vector<double> window_z,
    std::vector<double> window_y, std::vector<double> window_x, double volume, double smooth_nr, double smooth_dr,
    int64_t reduction_value, bool pred_grad, bool target_grad) {
  const Arguments arguments(pred, target, mask, window_z, window_y, window_x, reduction_value);
  const bool keep_map = arguments.reduction == Reduction::kNone;
  STD_TORCH_CHECK(!(keep_map && (pred_grad || target_grad)), kOp, ": the gradient of a map needs grad_output first");
  const ScalarType loss_dtype = real_dtype(arguments.dtype());
  Tensor loss = keep_map ? new_output(pred, pred.sizes(), loss_dtype) : new_output(pred, {}, loss_dtype);
  const std::optional<Tensor> to_pred = new_gradient(pred, pred_grad, loss_dtype);
  const std::optional<Tensor> to_target = new_gradient(pred, target_grad, loss_dtype);

  dispatch_floating(arguments.dtype(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* result = static_cast<Real<T>*>(loss.mutable_data_ptr());
    Problem problem = arguments.problem(volume, smooth_nr, smooth_dr);
    if (pred.numel() == 0) {
      const bool mean = arguments.reduction == Reduction::kMean;
      if (!keep_map) *result = mean ? std::numeric_limits<Real<T>>::quiet_NaN() : Real<T>(0);
      return;
    }
    if (keep_map) problem.loss_map = result;
    const double count = divisor<Real<T>>(arguments, problem);
    problem.scale = -1 / count;
    set_gradients(problem, to_pred, to_target);
    const double total = march<T>(problem);
    if (!keep_map) *result = static_cast<Real<T>>(0 - total / count);
  });
  return {loss, to_pred, to_target};
}

// Returns (gradient to pred, gradient to target), of the input's dtype and shape; none where not asked for.
// Takes in what forward does, and grad_output, of the loss' dtype and shape.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> lncc_backward(
    const Tensor& grad_output, const Tensor& pred, const Tensor& target, const std::optional<Tensor>& mask,
    std::vector<double> window_z, std::vector<double> window_y, std::vector<double> window_x, double volume,
    double smooth_nr, double smooth_dr, int64_t reduction_value, bool pred_grad, bool target_grad) {
  const Arguments arguments(pred, target, mask, window_z, window_y, window_x, reduction_value);
  const bool is_map = arguments.reduction == Reduction::kNone;
  check_on_cpu(kOp, "grad_output", grad_output);
  check_grad_output(kOp, grad_output, pred, is_map);
  const Tensor grad = as_contiguous(grad_output);
  const std::optional<Tensor> to_pred = new_gradient(pred, pred_grad, arguments.dtype());
  const std::optional<Tensor> to_target = new_gradient(pred, target_grad, arguments.dtype());
  if (pred.numel() == 0 || !(pred_grad || target_grad)) return {to_pred, to_target};

  dispatch_floating(arguments.dtype(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Problem problem = arguments.problem(volume, smooth_nr, smooth_dr);
    const auto* factors = static_cast<const Real<T>*>(grad.const_data_ptr());
    problem.scale = -1 / divisor<Real<T>>(arguments, problem);
    if (is_map) {
      problem.grad_map = factors;
    } else {
      problem.scale *= *factors;
    }
    problem.gradient_of_input_type = true;
    set_gradients(problem, to_pred, to_target);
    march<T>(problem);
  });
  return {to_pred, to_target};
}

}  // namespace
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/lncc).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("lncc_native_forward", TORCH_BOX(&usreg::lncc_forward));
  m.impl("lncc_native_backward", TORCH_BOX(&usreg::lncc_backward));
}
