// Mutual information of two images on GPUs: the launchers.

#include <algorithm>
#include <cmath>
#include <tuple>

#include "cuda/mutual_information/backward.cuh"
#include "cuda/mutual_information/forward.cuh"
#include "cuda/support/torch_support.h"

namespace usreg {
namespace cuda {
namespace {

constexpr const char* kOp = "mutual_information";

// A call, its tensors contiguous.
struct InfoCall {
  InfoCall(const Tensor& pred_arg, const Tensor& target_arg, const std::optional<Tensor>& mask_arg, int64_t num_bins,
           bool is_gaussian, double sigma)
      : pred(pred_arg), target(target_arg), gaussian(is_gaussian) {
    check_pair(kOp, "pred", pred, "target", target);
    if (mask_arg.has_value()) check_mask(kOp, *mask_arg, pred);
    const int64_t least = gaussian ? 2 : 2 * kInfoMargin + 2;
    STD_TORCH_CHECK(num_bins >= least && num_bins <= kInfoMostBins, kOp, ": num_bins must be from ", least, " to ",
                    kInfoMostBins, ", not ", num_bins);
    STD_TORCH_CHECK(!gaussian || (sigma >= kInfoLeastSigma && std::isfinite(sigma)), kOp, ": sigma must be at least ",
                    kInfoLeastSigma, ", not ", sigma);
    pred = as_contiguous(pred);
    target = as_contiguous(target);
    mask = as_contiguous(mask_arg);
    bins = static_cast<int>(num_bins);
    items = pred.size(0);
    size = items == 0 ? 0 : pred.numel() / items;
    if (gaussian) {
      // from the nearest bin, half a bin away at most
      const double reach = 0.5 + std::sqrt(0.25 - 2 * sigma * sigma * std::log(kInfoNegligible));
      window = {static_cast<int>(std::min<double>(reach, bins)), 1 / (sigma * sigma), std::exp(-1 / (sigma * sigma))};
    }
  }

  template <class T>
  InfoImages<T> images() const {
    constexpr int64_t kBlocks = 1024, kVoxels = 4 * kInfoThreads;
    const int64_t most = std::max<int64_t>(1, kBlocks / items);
    const int64_t pieces = std::max<int64_t>(1, std::min(most, ceil_div(size, kVoxels)));
    return {data<T>(pred),
            data<T>(target),
            data<Real<T>>(mask),
            items,
            size,
            mask.has_value() ? mask->numel() / items : 0,
            bins,
            static_cast<unsigned>(pieces)};
  }

  int count_bits() const {
    int bits = 0;
    while (int64_t{1} << bits < size) ++bits;
    return bits;
  }
  size_t histogram_bytes() const { return sizeof(InfoSum) * bins * bins; }

  Tensor pred, target;
  std::optional<Tensor> mask;
  int bins;
  int64_t items, size;
  bool gaussian;
  InfoGaussian window = {};
};

// The numbers of the ranges, by one thread.
__global__ void write_ranges(const __grid_constant__ InfoState state, int bins, double* numbers) {
  bool finite = state.numbers[InfoState::kStrange] == 0;
  for (int i = 0; i < 2; ++i) {
    const InfoSum highest = state.numbers[2 * i], lowest = state.numbers[2 * i + 1];
    const double high = highest == 0 ? 0.0 : value_of(highest), low = lowest == 0 ? 0.0 : -value_of(lowest);
    const double length = high - low;
    finite = finite && is_finite_number(length);
    numbers[3 * i] = low;
    numbers[3 * i + 1] = high;
    numbers[3 * i + 2] = length == 0 ? HUGE_VAL : length / (bins - 2 * kInfoMargin);
  }
  numbers[kFinite] = finite ? 1 : 0;
}

// Adds the windows of all voxels to the histograms. numbers: of the ranges, b-spline.
template <class T>
void launch_counts(TensorLaunches& launches, const InfoCall& call, const InfoState& state, double* numbers) {
  const InfoImages<T> images = call.images<T>();
  const size_t own = block_sum_bytes<InfoSum>(kInfoThreads);
  if (!call.gaussian) {
    launches.run(measure_images<true, T>, images.blocks(), kInfoThreads, own, images, state);
    launches.run(write_ranges, 1, 1, 0, state, call.bins, numbers);
  } else if (call.mask.has_value()) {
    launches.run(measure_images<false, T>, images.blocks(), kInfoThreads, own, images, state);
  }
  const auto run = [&](auto kernel, size_t shared, auto argument) {
    launches.run(kernel, images.blocks(), kInfoThreads, std::max(own, shared), images, state, call.count_bits(),
                 argument);
  };
  const bool fits = call.histogram_bytes() <= kInfoMostShared;
  const size_t shared = fits ? call.histogram_bytes() : 0;
  if (call.gaussian) return run(fits ? count_gaussian<true, T> : count_gaussian<false, T>, shared, call.window);
  run(fits ? count_bspline<true, T> : count_bspline<false, T>, shared, numbers);
}

using Saved = std::optional<Tensor>;

// Returns (loss, slopes, numbers), the last two only where a gradient is needed. loss: a scalar, or (B,) for none.
// slopes: (B, bins, bins), float64, the derivative of an item's loss by its histogram. numbers: float64, see
// InfoNumber.
std::tuple<Tensor, Saved, Saved> forward(const Tensor& pred, const Tensor& target, const std::optional<Tensor>& mask,
                                         int64_t num_bins, bool gaussian, double sigma, bool normalized,
                                         int64_t reduction_value, double smooth_nr, double smooth_dr, bool needs_grad) {
  const Reduction reduction = check_reduction(kOp, reduction_value);
  const InfoCall call(pred, target, mask, num_bins, gaussian, sigma);
  const ScalarType real = real_dtype(call.pred.scalar_type());
  Tensor values = torch::stable::new_empty(call.pred, {call.items}, real);
  const Tensor joint = torch::stable::new_empty(call.pred, {call.items, call.bins, call.bins}, ScalarType::Double);
  const Tensor numbers = torch::stable::new_zeros(call.pred, {kEnds + 2 * call.items}, ScalarType::Double);
  Tensor loss = reduction == Reduction::kNone ? values : torch::stable::new_empty(call.pred, {}, real);
  const Saved slopes = needs_grad ? Saved(joint) : std::nullopt, saved = needs_grad ? Saved(numbers) : std::nullopt;
  if (call.items == 0) {
    if (reduction != Reduction::kNone) fill_empty_loss(loss, reduction);
    return {loss, slopes, saved};
  }
  const int64_t count = InfoState::count(call.items, call.bins);
  const Tensor memory = torch::stable::new_zeros(call.pred, {count}, ScalarType::Long);
  const InfoState state(mutable_data<InfoSum>(memory), call.items);
  TensorLaunches launches(call.pred);
  dispatch_elements(call.pred.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    double* const table = mutable_data<double>(joint);
    double* const range = mutable_data<double>(numbers);
    launch_counts<T>(launches, call, state, range);
    const InfoScore how = {normalized, call.mask.has_value(), smooth_nr, smooth_dr, call.size, call.count_bits()};
    launches.run(score_histograms<R>, call.items, kInfoThreads, info_score_bytes(call.bins), state, call.bins, how,
                 table, mutable_data<R>(values), needs_grad ? table : nullptr, gaussian ? nullptr : range);
    if (reduction != Reduction::kNone) {
      const double divisor = reduction == Reduction::kMean ? static_cast<double>(call.items) : 1;
      launch_finish<R>(launches, data<R>(values), nullptr, call.items, 1, divisor, mutable_data<R>(loss), nullptr);
    }
    if (!needs_grad || gaussian) return;
    const InfoImages<T> images = call.images<T>();
    const Tensor partials = torch::stable::new_empty(call.pred, {2 * images.blocks()}, ScalarType::Double);
    launches.run(sum_ends<T>, images.blocks(), kInfoThreads, block_sum_bytes<double>(kInfoThreads), images, table,
                 range, mutable_data<double>(partials));
    launches.run(add_up_rows<double>, 2 * call.items, kFinishThreads, block_sum_bytes<double>(kFinishThreads),
                 data<double>(partials), images.pieces, range + kEnds);
  });
  launches.check(kOp);
  return {loss, slopes, saved};
}

// Returns the gradients to pred and target, of the images' dtype and shape; none where not asked for.
// slopes, numbers: as forward returned them.
std::tuple<Saved, Saved> backward(const Tensor& grad_output, const Tensor& slopes, const Tensor& numbers,
                                  const Tensor& pred, const Tensor& target, const std::optional<Tensor>& mask,
                                  int64_t num_bins, bool gaussian, double sigma, int64_t reduction_value,
                                  bool pred_grad, bool target_grad) {
  const Reduction reduction = check_reduction(kOp, reduction_value);
  const InfoCall call(pred, target, mask, num_bins, gaussian, sigma);
  const bool per_item = reduction == Reduction::kNone;
  check_same_device(kOp, "grad_output", grad_output, call.pred);
  check_dtype(kOp, "grad_output", grad_output, real_dtype(call.pred.scalar_type()));
  const bool fits = per_item ? grad_output.dim() == 1 && grad_output.size(0) == call.items : grad_output.dim() == 0;
  STD_TORCH_CHECK(fits, kOp, ": grad_output must have the shape of the loss, not ", shape_text(grad_output));
  for (const Tensor& saved : {slopes, numbers}) {
    check_same_device(kOp, "what forward saved", saved, call.pred);
    check_dtype(kOp, "what forward saved", saved, ScalarType::Double);
  }
  STD_TORCH_CHECK(slopes.numel() == call.items * call.bins * call.bins && numbers.numel() == kEnds + 2 * call.items,
                  kOp, ": slopes and ranges must be those of the forward pass");
  const Tensor grad = as_contiguous(grad_output), table = as_contiguous(slopes), range = as_contiguous(numbers);
  const Saved to_pred = new_gradient(call.pred, pred_grad);
  Saved to_target = new_gradient(call.target, target_grad);
  if (!gaussian && target_grad) torch::stable::fill_(*to_target, 0);  // its window is a box
  if (call.pred.numel() == 0 || (!pred_grad && !(gaussian && target_grad))) return {to_pred, to_target};
  TensorLaunches launches(call.pred);
  dispatch_elements(call.pred.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const InfoImages<T> images = call.images<T>();
    const double share = reduction == Reduction::kMean ? 1 / static_cast<double>(call.items) : 1;
    const InfoIncoming<R> incoming = {data<R>(grad), per_item, share};
    if (gaussian) {
      launches.run(write_gaussian_gradients<T>, images.blocks(), kInfoThreads, 0, images, call.window,
                   data<double>(table), incoming, mutable_data<T>(to_pred), mutable_data<T>(to_target));
    } else {
      const Tensor ends = torch::stable::new_empty(call.pred, {2}, ScalarType::Double);
      launches.run(finish_ends<R>, 1, kInfoThreads, block_sum_bytes<double>(kInfoThreads), data<double>(range),
                   call.items, incoming, mutable_data<double>(ends));
      launches.run(write_bspline_gradient<T>, images.blocks(), kInfoThreads, 0, images, data<double>(table),
                   data<double>(range), incoming, data<double>(ends), mutable_data<T>(*to_pred));
    }
  });
  launches.check(kOp);
  return {to_pred, to_target};
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/mutual_information).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("mutual_information_native_forward", TORCH_BOX(&usreg::cuda::forward));
  m.impl("mutual_information_native_backward", TORCH_BOX(&usreg::cuda::backward));
}
