// Mean squared error between two displacement fields on GPUs: the launcher of dvf_mse.cuh.

#include <tuple>

#include "cuda/dvf_mse/dvf_mse.cuh"
#include "cuda/support/torch_support.h"

namespace usreg {
namespace cuda {
namespace {

constexpr const char* kOp = "dvf_mse";

void check_fields(const Tensor& pred_dvf, const Tensor& gt_dvf, const std::optional<Tensor>& mask) {
  check_pair(kOp, "pred_dvf", pred_dvf, "gt_dvf", gt_dvf);
  if (mask.has_value()) check_mask(kOp, *mask, pred_dvf);
}

template <class T>
DvfPair<T> make_pair(const Tensor& pred, const Tensor& gt, const std::optional<Tensor>& mask) {
  DvfPair<T> fields = {data<T>(pred), data<T>(gt), data<Real<T>>(mask), 1, pred.numel(), 1};
  if (mask.has_value() && mask->size(1) != pred.size(1)) {
    fields.rows = pred.size(0) * pred.size(1);
    fields.size /= fields.rows;
    fields.rows_per_mask = pred.size(1);
  }
  return fields;
}

// Returns (loss, divisor). loss: scalar for mean and sum, of the fields' shape for none; float64 for float64 fields,
// else float32. divisor: float64 scalar, what the sum was divided by (1 for sum and none).
std::tuple<Tensor, Tensor> dvf_mse_forward(const Tensor& pred_dvf, const Tensor& gt_dvf,
                                           const std::optional<Tensor>& mask, int64_t reduction_value) {
  const Reduction reduction = check_reduction(kOp, reduction_value);
  check_fields(pred_dvf, gt_dvf, mask);
  const Tensor pred = as_contiguous(pred_dvf), gt = as_contiguous(gt_dvf);
  const std::optional<Tensor> weights = as_contiguous(mask);
  const bool keep_map = reduction == Reduction::kNone;
  const ScalarType real = real_dtype(pred.scalar_type());
  Tensor loss =
      keep_map ? torch::stable::new_empty(pred, pred.sizes(), real) : torch::stable::new_empty(pred, {}, real);
  Tensor divisor = torch::stable::new_empty(pred, {}, ScalarType::Double);
  if (keep_map || pred.numel() == 0) torch::stable::fill_(divisor, 1);
  if (pred.numel() == 0) {
    fill_empty_loss(loss, reduction);
    return {loss, divisor};
  }
  TensorLaunches launches(pred);
  dispatch_elements(pred.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const DvfPair<T> fields = make_pair<T>(pred, gt, weights);
    const Tensor partials = torch::stable::new_empty(pred, {keep_map ? 0 : 2 * dvf_mse_partials(fields)}, real);
    R* const result = mutable_data<R>(loss);
    launch_dvf_mse(launches, fields, reduction == Reduction::kMean, keep_map ? result : nullptr,
                   mutable_data<R>(partials), result, mutable_data<double>(divisor));
  });
  launches.check(kOp);
  return {loss, divisor};
}

// Returns the gradients to pred_dvf and gt_dvf, of the fields' dtype and shape; none where not asked for.
// grad_output: of the loss' dtype and shape. divisor: as forward returned it.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> dvf_mse_backward(
    const Tensor& grad_output, const Tensor& pred_dvf, const Tensor& gt_dvf, const std::optional<Tensor>& mask,
    const Tensor& divisor, int64_t reduction_value, bool pred_grad, bool gt_grad) {
  const Reduction reduction = check_reduction(kOp, reduction_value);
  check_fields(pred_dvf, gt_dvf, mask);
  const bool has_map = reduction == Reduction::kNone;
  check_grad_output(kOp, grad_output, pred_dvf, has_map);
  check_scalar(kOp, "divisor", divisor, pred_dvf);
  const Tensor pred = as_contiguous(pred_dvf), gt = as_contiguous(gt_dvf);
  const std::optional<Tensor> weights = as_contiguous(mask);
  const Tensor grad = as_contiguous(grad_output);
  const std::optional<Tensor> to_pred = new_gradient(pred, pred_grad), to_gt = new_gradient(pred, gt_grad);
  if (pred.numel() == 0 || !(pred_grad || gt_grad)) return {to_pred, to_gt};
  TensorLaunches launches(pred);
  dispatch_elements(pred.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_dvf_mse_gradients(launches, make_pair<T>(pred, gt, weights), data<Real<T>>(grad), has_map,
                             data<double>(divisor), mutable_data<T>(to_pred), mutable_data<T>(to_gt));
  });
  launches.check(kOp);
  return {to_pred, to_gt};
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/dvf_mse).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("dvf_mse_native_forward", TORCH_BOX(&usreg::cuda::dvf_mse_forward));
  m.impl("dvf_mse_native_backward", TORCH_BOX(&usreg::cuda::dvf_mse_backward));
}
