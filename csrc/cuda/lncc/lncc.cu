// Local normalised cross-correlation on GPUs: the launchers of march.cuh and separable.cuh.

#include <tuple>

#include "cuda/lncc/plan.cuh"
#include "cuda/lncc/separable_launch.cuh"
#include "cuda/support/torch_support.h"

namespace usreg {
namespace cuda {
namespace {

constexpr const char* kOp = "lncc";

int multiprocessors() {
  int device = 0, count = 0;
  STD_TORCH_CHECK(cudaGetDevice(&device) == cudaSuccess &&
                      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess,
                  kOp, ": CUDA does not say how many multiprocessors the device has");
  return count;
}

// The arguments that forward and backward share, checked.
struct LnccCall {
  Tensor pred, target;
  std::optional<Tensor> mask;
  LnccWindow window;
  double smooth_nr, smooth_dr;
  Reduction reduction;
  LnccShape shape;
  bool march;

  LnccCall(const Tensor& pred_arg, const Tensor& target_arg, const std::optional<Tensor>& mask_arg,
           LnccWindow window_arg, double nr, double dr, int64_t reduction_value)
      : pred(pred_arg),
        target(target_arg),
        window(std::move(window_arg)),
        smooth_nr(nr),
        smooth_dr(dr),
        reduction(check_reduction(kOp, reduction_value)) {
    check_pair(kOp, "pred", pred, "target", target);
    if (mask_arg.has_value()) check_mask(kOp, *mask_arg, pred);
    for (const auto* weights : {&window.z, &window.y, &window.x}) {
      STD_TORCH_CHECK(weights->size() % 2 == 1, kOp, ": a window must have an odd size along each axis, not ",
                      weights->size());
    }
    mask = as_contiguous(mask_arg);
    for (int64_t i = 2; i < pred.dim(); ++i) {
      STD_TORCH_CHECK(pred.size(i) < INT32_MAX, kOp, ": an axis has fewer than 2^31 voxels, not ", pred.size(i));
    }
    const int64_t dims = pred.dim() - 2;
    const auto size = [&](int64_t from_last) {
      return from_last < dims ? static_cast<int>(pred.size(pred.dim() - 1 - from_last)) : 1;
    };
    shape = {pred.size(0) * pred.size(1), size(2), size(1), size(0)};
    LnccShape rows = shape;
    LnccWindow row_window = window;
    march_along_rows(rows, row_window);
    march = pred.scalar_type() != ScalarType::Double && can_march(rows, row_window);
    if (march) {
      shape = rows;
      window = row_window;
    }
  }

  int volumes_per_mask() const {
    return mask.has_value() && mask->size(1) != pred.size(1) ? static_cast<int>(pred.size(1)) : 1;
  }

  // The elements of the maps; in how many arrays.
  int64_t map_numel(int count) const { return shape.volumes * shape.depth * MapLayout(shape).plane() * count; }

  template <class R>
  CorrelationConstants<R> constants() const {
    return {window.volume, smooth_nr, smooth_dr};
  }

  // A tensor as a kernel reads it: contiguous or, for the march, in rows of pairs.
  Tensor rows_of(const Tensor& tensor) const {
    if (!march) return as_contiguous(tensor);
    if (shape.width % kColumns != 0) {
      return as_contiguous(torch::stable::pad(tensor, {0, kColumns - shape.width % kColumns}));
    }
    const Tensor rows = as_contiguous(tensor);
    const auto address = reinterpret_cast<uintptr_t>(rows.const_data_ptr());
    return address % (kColumns * rows.element_size()) == 0 ? rows : torch::stable::clone(rows);
  }
};

// Tensors that outlive the launches that use them.
struct ForwardTensors {
  Tensor loss, divisor, maps;
};

// Fills maps and, unless skip_loss, loss and divisor.
template <class T>
void run_forward(TensorLaunches& launches, const LnccCall& call, int map_count, bool skip_loss,
                 ForwardTensors& tensors) {
  using R = Real<T>;
  const bool keep_map = call.reduction == Reduction::kNone, mean = call.reduction == Reduction::kMean;
  const ScalarType real = real_dtype(call.pred.scalar_type());
  const Tensor pred = call.rows_of(call.pred), target = call.rows_of(call.target);
  CorrelationOutputs<R> outputs = {data<R>(call.mask), call.volumes_per_mask(), nullptr, nullptr, nullptr, nullptr};
  if (map_count > 0) outputs.maps = mutable_data<R>(tensors.maps);
  launch_clear_map_padding(launches, call.shape, map_count, outputs.maps);
  if (keep_map && !skip_loss) outputs.loss_map = mutable_data<R>(tensors.loss);
  std::optional<Tensor> partials;
  const auto set_partials = [&](int64_t blocks) {
    if (keep_map || skip_loss) return;
    partials = torch::stable::new_empty(call.pred, {2, blocks}, real);
    outputs.partials = mutable_data<R>(*partials);
    outputs.weights = outputs.partials + blocks;
  };
  int64_t blocks = 0;
  if constexpr (!std::is_same_v<T, double>) {
    if (call.march) {
      const MarchPlan plan = plan_march(call.shape, call.window, multiprocessors());
      blocks = plan.grid.blocks();
      set_partials(blocks);
      MarchLaunches<T>::forward(launches, plan, map_count, call.constants<float>(), data<T>(pred), data<T>(target),
                                outputs);
    }
  }
  if (!call.march) {
    const SeparablePlan plan = plan_separable(call.shape, call.window);
    const Tensor weights = torch::stable::new_empty(call.pred, {weight_count(call.window)}, ScalarType::Double);
    const Tensor memory = torch::stable::new_empty(call.pred, {2, kCorrelationSums, plan.sums}, ScalarType::Double);
    blocks = plan.blocks;
    set_partials(blocks);
    const SeparableWindow window = store_window(launches, call.window, mutable_data<double>(weights));
    launch_separable_forward<T>(launches, call.shape, plan, window, map_count, call.constants<double>(), data<T>(pred),
                                data<T>(target), mutable_data<double>(memory), outputs);
  }
  if (!partials.has_value()) return;
  launch_finish<R>(launches, outputs.partials, mean && outputs.mask != nullptr ? outputs.weights : nullptr, blocks, 1,
                   mean ? static_cast<double>(call.pred.numel()) : 1, mutable_data<R>(tensors.loss),
                   mutable_data<double>(tensors.divisor));
}

// Returns (loss, divisor, maps). loss: scalar for mean and sum, of the images' shape for none; float64 for float64
// images, else float32. divisor: float64 scalar, what the sum was divided by. maps: for backward, map_count of them (0,
// 3 for the gradient to pred, or 5 for both).
std::tuple<Tensor, Tensor, Tensor> lncc_forward(const Tensor& pred, const Tensor& target,
                                                const std::optional<Tensor>& mask, std::vector<double> window_z,
                                                std::vector<double> window_y, std::vector<double> window_x,
                                                double volume, double smooth_nr, double smooth_dr,
                                                int64_t reduction_value, int64_t map_count) {
  const LnccCall call(pred, target, mask, {window_z, window_y, window_x, volume}, smooth_nr, smooth_dr,
                      reduction_value);
  STD_TORCH_CHECK(map_count == 0 || map_count == 3 || map_count == 5, kOp, ": map_count=", map_count,
                  " is not 0, 3 or 5");
  const bool keep_map = call.reduction == Reduction::kNone;
  const ScalarType real = real_dtype(pred.scalar_type());
  const int maps = static_cast<int>(map_count);
  ForwardTensors tensors = {
      keep_map ? torch::stable::new_empty(pred, pred.sizes(), real) : torch::stable::new_empty(pred, {}, real),
      torch::stable::new_empty(pred, {}, ScalarType::Double),
      torch::stable::new_empty(pred, {call.map_numel(maps)}, real)};
  if (keep_map || pred.numel() == 0) torch::stable::fill_(tensors.divisor, 1);
  if (pred.numel() == 0) {
    fill_empty_loss(tensors.loss, call.reduction);
  } else {
    TensorLaunches launches(pred);
    dispatch_elements(pred.scalar_type(), kOp, [&](auto tag) {
      run_forward<typename decltype(tag)::type>(launches, call, maps, false, tensors);
    });
    launches.check(kOp);
  }
  return {tensors.loss, tensors.divisor, tensors.maps};
}

template <class T>
void run_backward(TensorLaunches& launches, const LnccCall& call, int map_count, const Tensor& maps,
                  const Tensor& grad_output, const GradientOutputs<T>& outputs) {
  using R = Real<T>;
  const Tensor pred = call.rows_of(call.pred), target = call.rows_of(call.target);
  std::optional<Tensor> incoming;
  if (call.reduction == Reduction::kNone) incoming = call.rows_of(grad_output);
  if constexpr (!std::is_same_v<T, double>) {
    if (call.march) {
      const MarchPlan plan = plan_march(call.shape, call.window, multiprocessors());
      MarchLaunches<T>::backward(launches, plan, map_count, data<float>(maps), data<float>(incoming), data<T>(pred),
                                 data<T>(target), outputs);
      return;
    }
  }
  const SeparablePlan plan = plan_separable(call.shape, call.window);
  const Tensor weights = torch::stable::new_empty(call.pred, {weight_count(call.window)}, ScalarType::Double);
  const Tensor memory = torch::stable::new_empty(call.pred, {2, map_count, plan.sums}, maps.scalar_type());
  const SeparableWindow window = store_window(launches, call.window, mutable_data<double>(weights));
  launch_separable_backward<T>(launches, call.shape, plan, window, map_count, data<R>(maps), data<R>(incoming),
                               data<T>(pred), data<T>(target), mutable_data<R>(memory), outputs);
}

// Returns the gradients to pred and target, of the images' dtype and shape; none where not asked for.
// grad_output: of the loss' dtype and shape. divisor: as forward returned it. maps: as forward returned them, or empty
// to have them made again; three of them give only the gradient to pred.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> lncc_backward(
    const Tensor& grad_output, const Tensor& divisor, const Tensor& maps, const Tensor& pred, const Tensor& target,
    const std::optional<Tensor>& mask, std::vector<double> window_z, std::vector<double> window_y,
    std::vector<double> window_x, double volume, double smooth_nr, double smooth_dr, int64_t reduction_value,
    bool pred_grad, bool target_grad) {
  const LnccCall call(pred, target, mask, {window_z, window_y, window_x, volume}, smooth_nr, smooth_dr,
                      reduction_value);
  const bool has_map = call.reduction == Reduction::kNone, saved = maps.numel() > 0;
  check_grad_output(kOp, grad_output, pred, has_map);
  check_scalar(kOp, "divisor", divisor, pred);
  check_same_device(kOp, "maps", maps, pred);
  check_dtype(kOp, "maps", maps, real_dtype(pred.scalar_type()));
  const std::optional<Tensor> to_pred = new_gradient(pred, pred_grad), to_target = new_gradient(pred, target_grad);
  if (pred.numel() == 0 || !(pred_grad || target_grad)) return {to_pred, to_target};
  const int map_count = saved ? static_cast<int>(maps.numel() / call.map_numel(1)) : target_grad ? 5 : 3;
  STD_TORCH_CHECK(
      !saved || (maps.numel() == call.map_numel(map_count) && (map_count == 5 || (map_count == 3 && !target_grad))),
      kOp, ": maps has ", maps.numel(), " elements, which are not those of these images and gradients");
  TensorLaunches launches(pred);
  dispatch_elements(pred.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    ForwardTensors tensors = {divisor, divisor, maps};
    if (!saved) {
      tensors.maps = torch::stable::new_empty(maps, {call.map_numel(map_count)});
      run_forward<T>(launches, call, map_count, true, tensors);
    }
    const GradientOutputs<T> outputs = {has_map ? nullptr : data<Real<T>>(grad_output), data<double>(divisor),
                                        call.window.volume, mutable_data<T>(to_pred), mutable_data<T>(to_target)};
    run_backward<T>(launches, call, map_count, as_contiguous(tensors.maps), grad_output, outputs);
  });
  launches.check(kOp);
  return {to_pred, to_target};
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/lncc/cuda.py).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("lncc_cuda_forward", TORCH_BOX(&usreg::cuda::lncc_forward));
  m.impl("lncc_cuda_backward", TORCH_BOX(&usreg::cuda::lncc_backward));
}
