// Mutual information of two images on CPUs; mutual_information.h explains the kernels.

#include "cpu/mutual_information/mutual_information.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/dtypes.h"
#include "common/mutual_information_score.h"
#include "common/reduction.h"
#include "common/tensors.h"
#include "cpu/support/capability.h"
#include "cpu/support/memory.h"
#include "cpu/support/parallel.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

#define USREG_KERNEL_BODY "cpu/mutual_information/kernel.inc"
#include "cpu/support/for_each_isa.inc"

namespace usreg {
namespace mutual_information {
namespace {

constexpr const char* kOp = "mutual_information";
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kLargestVector = 8;  // doubles
constexpr int64_t kAlignment = 64;     // bytes

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t whole_vectors(int64_t count) { return ceil_div(count, kLargestVector) * kLargestVector; }

// Zeros that begin at a vector.
class Numbers {
 public:
  explicit Numbers(int64_t count) : memory_(count + kLargestVector) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    offset_ = static_cast<int64_t>((kAlignment - address % kAlignment) % kAlignment / sizeof(double));
  }
  double* data() { return memory_.data() + offset_; }

 private:
  std::vector<double> memory_;
  int64_t offset_;
};

// A call, its tensors contiguous.
struct Call {
  Call(const Tensor& pred_arg, const Tensor& target_arg, const std::optional<Tensor>& mask_arg, int64_t num_bins,
       bool is_gaussian, double sigma)
      : pred(pred_arg), target(target_arg), bins(num_bins), gaussian(is_gaussian) {
    check_on_cpu(kOp, "pred", pred);
    check_pair(kOp, "pred", pred, "target", target);
    if (mask_arg.has_value()) check_mask(kOp, *mask_arg, pred);
    const int64_t least = gaussian ? 2 : 2 * kMargin + 2;
    STD_TORCH_CHECK(bins >= least && bins <= kMostBins, kOp, ": num_bins must be from ", least, " to ", kMostBins,
                    ", not ", bins);
    STD_TORCH_CHECK(!gaussian || (sigma >= kLeastSigma && std::isfinite(sigma)), kOp, ": sigma must be at least ",
                    kLeastSigma, ", not ", sigma);
    pred = as_contiguous(pred);
    target = as_contiguous(target);
    mask = as_contiguous(mask_arg);
    items = pred.size(0);
    channels = pred.size(1);
    voxels = 1;
    for (int64_t i = 2; i < pred.dim(); ++i) voxels *= pred.size(i);
    shares_mask = mask.has_value() && mask->size(1) != channels;
    if (gaussian) {
      per_bin = 1 / (sigma * sigma);
      reach = static_cast<int64_t>(std::ceil(std::sqrt(0.25 - 2 * sigma * sigma * std::log(kNegligible))));
      reach = std::min(reach, bins);
      for (int64_t j = 0; j <= reach; ++j) fall.push_back(std::exp(-0.5 * static_cast<double>(j * j) * per_bin));
    }
  }

  Gaussian windows() const { return {bins, reach, per_bin, fall.data()}; }
  int64_t item_size() const { return channels * voxels; }

  Tensor pred, target;
  std::optional<Tensor> mask;
  int64_t bins, items, channels, voxels;
  bool gaussian, shares_mask;
  double per_bin = 0;
  int64_t reach = 0;
  std::vector<double> fall;
};

// The layout of a gaussian histogram: copies, rows, columns.
struct Layout {
  explicit Layout(const Gaussian& gaussian) {
    constexpr int64_t kMostNumbers = int64_t{4} << 17;  // 4 MiB
    width = whole_vectors(gaussian.taps());
    pitch = whole_vectors(gaussian.bins + width);
    rows = gaussian.bins + gaussian.taps();
    copies = kLargestVector * rows * pitch <= kMostNumbers ? kLargestVector : 1;
  }
  int64_t copy_size() const { return copies == 1 ? 0 : rows * pitch; }
  int64_t count() const { return copies * rows * pitch; }

  int64_t width, pitch, rows, copies;
};

// The parts of each item, whatever the number of threads: each has sums of its own, so many that they take little
// memory.
class Tasks {
 public:
  Tasks(const Call& call, int64_t sums) : call_(call), sums_(sums) {
    constexpr int64_t kVoxels = 32768, kMostTasks = 64, kFewestTasks = 2, kMostNumbers = int64_t{16} << 17;  // 16 MiB
    const int64_t most =
        std::min(kMostTasks, kMostNumbers / std::max<int64_t>(1, sums)) / std::max<int64_t>(1, call.items);
    per_item_ = std::clamp<int64_t>(ceil_div(call.item_size(), kVoxels), 1, std::max(kFewestTasks, most));
  }

  int64_t count() const { return call_.items * per_item_; }
  int64_t per_item() const { return per_item_; }
  int64_t sums() const { return sums_; }

  // Calls function(task, for_each_run) for each task, from several threads. for_each_run(f) calls f(offset, offset of
  // the mask, number of voxels) for the task's voxels; a run has a mask in one piece.
  template <class Function>
  void parallel_for(const Function& function) const {
    usreg::parallel_for(count(), 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t item = task / per_item_, part = task % per_item_, size = call_.item_size();
        const int64_t begin = size * part / per_item_, end = size * (part + 1) / per_item_;
        function(task, [&](const auto& run) {
          for (int64_t at = begin; at < end;) {
            const int64_t within = call_.voxels == 0 ? 0 : at % call_.voxels;
            const int64_t stop = call_.shares_mask ? std::min(end, at + call_.voxels - within) : end;
            const int64_t mask_at = call_.shares_mask ? item * call_.voxels + within : item * size + at;
            run(item * size + at, mask_at, stop - at);
            at = stop;
          }
        });
      }
    });
  }

 private:
  const Call& call_;
  int64_t sums_, per_item_;
};

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* offset(const std::optional<Tensor>& tensor, int64_t elements) {
  return tensor.has_value() ? data<T>(*tensor) + elements : nullptr;
}

template <class T>
Axis find_axis(const Call& call, const Tensor& image, bool* is_finite) {
  const Tasks tasks(call, 0);
  std::vector<Range> ranges(tasks.count(), {kInfinity, -kInfinity, true});
  const auto kernel = USREG_SELECT(widen_range<T>);
  tasks.parallel_for([&](int64_t task, const auto& for_each_run) {
    for_each_run([&](int64_t at, int64_t mask_at, int64_t count) {
      kernel(data<T>(image) + at, offset<Real<T>>(call.mask, mask_at), count, &ranges[task]);
    });
  });
  Range total = {kInfinity, -kInfinity, true};
  for (const Range& range : ranges) {
    total.lowest = std::min(total.lowest, range.lowest);
    total.highest = std::max(total.highest, range.highest);
    total.is_finite = total.is_finite && range.is_finite;
  }
  if (total.lowest > total.highest) total.lowest = total.highest = 0;
  const double length = total.highest - total.lowest;
  *is_finite = *is_finite && total.is_finite && std::isfinite(length);
  const double bin_size = length == 0 ? kInfinity : length / static_cast<double>(call.bins - 2 * kMargin);
  return {total.lowest, total.highest, bin_size};
}

// What forward finds of the items, and keeps for backward.
struct Histograms {
  explicit Histograms(const Call& call)
      : joint(call.items * call.bins * call.bins), weight(call.items, 0.0), cells(call.gaussian ? 0 : call.items) {}

  std::vector<double> joint;               // (items, bins, bins)
  std::vector<double> weight;              // what an item's histogram is divided by
  std::vector<std::vector<double>> cells;  // (rows, columns, 4) of each item, b-spline
  double at_lowest = 0, at_highest = 0;    // voxels of pred at the ends of its range
  bool is_finite = true;
};

double divisor(const Call& call, double weight) {
  if (!call.mask.has_value()) return static_cast<double>(call.item_size());
  return weight == 0 ? 1 : weight;
}

template <class T>
void count_bspline_windows(const Call& call, const Axis& a, const Axis& b, Histograms* found) {
  const Cells cells(call.bins);
  const int64_t size = 4 * cells.count();
  const Tasks tasks(call, size);
  std::vector<double> sums(tasks.count() * size);
  std::vector<Tally> tallies(tasks.count());
  const auto kernel = USREG_SELECT(count_bspline<T>);
  tasks.parallel_for([&](int64_t task, const auto& for_each_run) {
    Numbers own(2 * size);
    for_each_run([&](int64_t at, int64_t mask_at, int64_t count) {
      kernel(data<T>(call.pred) + at, data<T>(call.target) + at, offset<Real<T>>(call.mask, mask_at), count, a, b,
             cells, own.data(), &tallies[task]);
    });
    for (int64_t i = 0; i < size; ++i) sums[task * size + i] = own.data()[i] + own.data()[size + i];
  });
  for (int64_t item = 0; item < call.items; ++item) {
    std::vector<double>& total = found->cells[item];
    total.assign(size, 0.0);
    for (int64_t part = 0; part < tasks.per_item(); ++part) {
      const int64_t task = item * tasks.per_item() + part;
      for (int64_t i = 0; i < size; ++i) total[i] += sums[task * size + i];
      found->weight[item] += tallies[task].weight;
      found->at_lowest += tallies[task].at_lowest;
      found->at_highest += tallies[task].at_highest;
    }
    double* const joint = found->joint.data() + item * call.bins * call.bins;
    for (int64_t row = 0; row < cells.rows(); ++row) {
      for (int64_t column = 0; column < cells.columns(); ++column) {
        const double* const cell = total.data() + 4 * (row * cells.columns() + column);
        double* const target = joint + (cells.first_bin(column) - 1) * call.bins + row / 2;
        for (int64_t j = 0; j < 4; ++j) {
          if (row % 2 == 0) {
            target[j * call.bins] += cell[j];
          } else {
            target[j * call.bins] += 0.5 * cell[j];
            if (row / 2 + 1 < call.bins) target[j * call.bins + 1] += 0.5 * cell[j];
          }
        }
      }
    }
  }
}

template <class T>
void count_gaussian_windows(const Call& call, Histograms* found) {
  const Gaussian gaussian = call.windows();
  const Layout layout(gaussian);
  const int64_t bins = call.bins, size = bins * bins;
  const Tasks tasks(call, size);
  std::vector<double> sums(tasks.count() * size), weights(tasks.count(), 0.0);
  std::vector<char> is_finite(tasks.count(), 1);
  const auto kernel = USREG_SELECT(count_gaussian<T>);
  tasks.parallel_for([&](int64_t task, const auto& for_each_run) {
    Numbers own(layout.count()), scratch((2 * gaussian.taps() + layout.width) * kWindowTile);
    for_each_run([&](int64_t at, int64_t mask_at, int64_t count) {
      const bool all =
          kernel(data<T>(call.pred) + at, data<T>(call.target) + at, offset<Real<T>>(call.mask, mask_at), count,
                 gaussian, layout.width, scratch.data(), own.data(), layout.pitch, layout.copy_size(), &weights[task]);
      is_finite[task] = is_finite[task] && all;
    });
    double* const joint = sums.data() + task * size;
    const int64_t before = gaussian.reach - 1;
    for (int64_t copy = 0; copy < layout.copies; ++copy) {
      for (int64_t i = 0; i < bins; ++i) {
        const double* const row = own.data() + copy * layout.copy_size() + (i + before) * layout.pitch + before - copy;
        for (int64_t j = std::max<int64_t>(0, copy - before); j < bins; ++j) joint[i * bins + j] += row[j];
      }
    }
  });
  for (int64_t item = 0; item < call.items; ++item) {
    double* const joint = found->joint.data() + item * size;
    for (int64_t part = 0; part < tasks.per_item(); ++part) {
      const int64_t task = item * tasks.per_item() + part;
      for (int64_t i = 0; i < size; ++i) joint[i] += sums[task * size + i];
      found->weight[item] += weights[task];
      if (!is_finite[task]) joint[0] = kNaN;
    }
  }
}

// The derivative of an item's loss by the ends of the range of pred, of which the places are made, for voxels that
// share it: sums over the cells of the derivative by the place, times where this lies between the ends. slopes: (bins,
// bins), the derivative by the histogram.
void add_ends(const Call& call, const Axis& a, const std::vector<double>& cells_of_item, const double* polynomials,
              double* ends) {
  const Cells cells(call.bins);
  const double inner = static_cast<double>(call.bins - 2 * kMargin);
  double by_place = 0, by_place_along = 0;
  for (int64_t row = 0; row < cells.rows(); ++row) {
    for (int64_t column = 0; column < cells.still(); ++column) {
      const int64_t index = 4 * (row * cells.columns() + column);
      const double* const s = cells_of_item.data() + index;
      const double* const c = polynomials + index;
      // Sums of the powers of the place within the interval.
      const double power_0 = s[0] + s[1] + s[2] + s[3], power_1 = s[2] - s[0] + 2 * s[3];
      const double power_2 = s[0] + s[2] + 4 * s[3] - power_0 / 3, power_3 = 6 * s[3];
      const double sum = c[0] * power_0 + c[1] * power_1 + c[2] * power_2;
      by_place += sum;
      by_place_along += static_cast<double>(column) * sum + c[0] * power_1 + c[1] * power_2 + c[2] * power_3;
    }
  }
  ends[0] = (by_place_along / inner - by_place) / a.bin_size;
  ends[1] = -by_place_along / inner / a.bin_size;
}

// The coefficients of the derivative by the place, for each cell: (rows, columns, 4).
std::vector<double> make_polynomials(int64_t bins, const double* slopes) {
  const Cells cells(bins);
  std::vector<double> result(4 * cells.count());
  for (int64_t row = 0; row < cells.rows(); ++row) {
    const int64_t bin = row / 2, next = std::min(bin + row % 2, bins - 1);
    for (int64_t column = 0; column < cells.still(); ++column) {
      double t[4];
      for (int64_t j = 0; j < 4; ++j) {
        const double* const line = slopes + (cells.first_bin(column) - 1 + j) * bins;
        t[j] = 0.5 * (line[bin] + line[next]);
      }
      double* const c = result.data() + 4 * (row * cells.columns() + column);
      c[0] = 0.5 * (t[2] - t[0]);
      c[1] = t[0] - 2 * t[1] + t[2];
      c[2] = 0.5 * (t[3] - t[0]) + 1.5 * (t[1] - t[2]);
    }
  }
  return result;
}

// What forward saves besides the slopes: numbers of the ranges, then two per item.
enum Saved : int64_t {
  kPredLow,
  kPredHigh,
  kPredBin,
  kTargetLow,
  kTargetHigh,
  kTargetBin,
  kAtLow,
  kAtHigh,
  kFinite,
  kEnds
};

// Returns (loss, slopes, ranges), the last two only where a gradient is needed. loss: a scalar, or (B,) for none.
// slopes: (B, bins, bins), float64, the derivative of an item's loss by its histogram. ranges: float64, see Saved.
std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>> forward(
    const Tensor& pred, const Tensor& target, const std::optional<Tensor>& mask, int64_t num_bins, bool gaussian,
    double sigma, bool normalized, int64_t reduction_value, double smooth_nr, double smooth_dr, bool needs_grad) {
  const Reduction reduction = check_reduction(kOp, reduction_value);
  const Call call(pred, target, mask, num_bins, gaussian, sigma);
  const int64_t bins = call.bins, size = bins * bins;
  Histograms found(call);
  Axis a = {}, b = {};
  dispatch_floating(call.pred.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (call.gaussian) {
      count_gaussian_windows<T>(call, &found);
      return;
    }
    a = find_axis<T>(call, call.pred, &found.is_finite);
    b = find_axis<T>(call, call.target, &found.is_finite);
    if (found.is_finite) {
      count_bspline_windows<T>(call, a, b, &found);
    } else {
      std::fill(found.joint.begin(), found.joint.end(), kNaN);
    }
  });

  std::optional<Tensor> slopes, ranges;
  double* slope_data = nullptr;
  double* range_data = nullptr;
  if (needs_grad) {
    slopes = new_output(call.pred, {call.items, bins, bins}, ScalarType::Double);
    ranges = new_output(call.pred, {kEnds + 2 * call.items}, ScalarType::Double);
    slope_data = static_cast<double*>(slopes->mutable_data_ptr());
    range_data = static_cast<double*>(ranges->mutable_data_ptr());
    const double numbers[kEnds] = {a.lowest,        a.highest,        a.bin_size,
                                   b.lowest,        b.highest,        b.bin_size,
                                   found.at_lowest, found.at_highest, found.is_finite ? 1.0 : 0.0};
    std::copy_n(numbers, static_cast<int64_t>(kEnds), range_data);
  }
  std::vector<double> values(call.items);
  for (int64_t item = 0; item < call.items; ++item) {
    double* const joint = found.joint.data() + item * size;
    const double count = divisor(call, found.weight[item]);
    for (int64_t i = 0; i < size; ++i) joint[i] /= count;
    double* const own = needs_grad ? slope_data + item * size : nullptr;
    values[item] = score_joint(joint, bins, normalized, smooth_nr, smooth_dr, own);
    if (!needs_grad) continue;
    for (int64_t i = 0; i < size; ++i) own[i] /= count;
    double* const ends = range_data + kEnds + 2 * item;
    ends[0] = ends[1] = 0;
    if (!call.gaussian && found.is_finite) {
      add_ends(call, a, found.cells[item], make_polynomials(bins, own).data(), ends);
    }
  }

  const ScalarType loss_dtype = real_dtype(call.pred.scalar_type());
  const bool per_item = reduction == Reduction::kNone;
  Tensor loss = per_item ? new_output(call.pred, {call.items}, loss_dtype) : new_output(call.pred, {}, loss_dtype);
  double total = 0;
  for (const double value : values) total += value;
  if (reduction == Reduction::kMean) total = call.items == 0 ? kNaN : total / static_cast<double>(call.items);
  dispatch_floating(loss_dtype, kOp, [&](auto tag) {
    using R = typename decltype(tag)::type;
    auto* const result = static_cast<R*>(loss.mutable_data_ptr());
    if (!per_item) values.assign(1, total);
    for (size_t i = 0; i < values.size(); ++i) result[i] = static_cast<R>(values[i]);
  });
  return {loss, slopes, ranges};
}

// What the loss of each item is multiplied by.
std::vector<double> incoming(const Call& call, const Tensor& grad_output, Reduction reduction) {
  const bool per_item = reduction == Reduction::kNone;
  check_same_device(kOp, "grad_output", grad_output, call.pred);
  check_dtype(kOp, "grad_output", grad_output, real_dtype(call.pred.scalar_type()));
  const bool fits = per_item ? grad_output.dim() == 1 && grad_output.size(0) == call.items : grad_output.dim() == 0;
  STD_TORCH_CHECK(fits, kOp, ": grad_output must have the shape of the loss, not ", shape_text(grad_output));
  const Tensor grad = as_contiguous(grad_output);
  std::vector<double> result(call.items);
  dispatch_floating(grad.scalar_type(), kOp, [&](auto tag) {
    using R = typename decltype(tag)::type;
    for (int64_t item = 0; item < call.items; ++item)
      result[item] = static_cast<double>(data<R>(grad)[per_item ? item : 0]);
  });
  if (reduction == Reduction::kMean) {
    for (double& value : result) value /= static_cast<double>(call.items);
  }
  return result;
}

template <class T>
void fill(const Tensor& tensor, double value) {
  std::fill_n(static_cast<T*>(tensor.mutable_data_ptr()), tensor.numel(), static_cast<T>(value));
}

template <class T>
void write_bspline_gradient(const Call& call, const std::vector<double>& grads, const double* slopes,
                            const double* ranges, const Tensor& gradient) {
  if (ranges[kFinite] == 0) return fill<T>(gradient, kNaN);
  const Axis a = {ranges[kPredLow], ranges[kPredHigh], ranges[kPredBin]};
  const Axis b = {ranges[kTargetLow], ranges[kTargetHigh], ranges[kTargetBin]};
  const Cells cells(call.bins);
  std::vector<std::vector<double>> tables(call.items);
  double low = 0, high = 0;
  for (int64_t item = 0; item < call.items; ++item) {
    low += grads[item] * ranges[kEnds + 2 * item];
    high += grads[item] * ranges[kEnds + 2 * item + 1];
    tables[item] = make_polynomials(call.bins, slopes + item * call.bins * call.bins);
    for (double& value : tables[item]) value *= grads[item] / a.bin_size;
  }
  low /= std::max(1.0, ranges[kAtLow]);
  high /= std::max(1.0, ranges[kAtHigh]);
  T* const target = static_cast<T*>(gradient.mutable_data_ptr());
  const auto kernel = USREG_SELECT(bspline_gradient<T>);
  const Tasks tasks(call, 0);
  tasks.parallel_for([&](int64_t task, const auto& for_each_run) {
    const double* const table = tables[task / tasks.per_item()].data();
    for_each_run([&](int64_t at, int64_t mask_at, int64_t count) {
      kernel(data<T>(call.pred) + at, data<T>(call.target) + at, offset<Real<T>>(call.mask, mask_at), count, a, b,
             cells, table, low, high, target + at);
    });
  });
}

template <class T>
void write_gaussian_gradients(const Call& call, const std::vector<double>& grads, const double* slopes,
                              const std::optional<Tensor>& to_pred, const std::optional<Tensor>& to_target) {
  const Gaussian gaussian = call.windows();
  const Layout layout(gaussian);
  const int64_t bins = call.bins, before = gaussian.reach - 1;
  std::vector<Numbers> tables;
  for (int64_t item = 0; item < call.items; ++item) {
    Numbers& table = tables.emplace_back(layout.rows * layout.pitch);
    for (int64_t i = 0; i < bins; ++i) {
      const double* const row = slopes + (item * bins + i) * bins;
      std::copy_n(row, bins, table.data() + (i + before) * layout.pitch + before);
    }
  }
  T* const pred_grad = to_pred.has_value() ? static_cast<T*>(to_pred->mutable_data_ptr()) : nullptr;
  T* const target_grad = to_target.has_value() ? static_cast<T*>(to_target->mutable_data_ptr()) : nullptr;
  const auto kernel = USREG_SELECT(gaussian_gradient<T>);
  const Tasks tasks(call, 0);
  tasks.parallel_for([&](int64_t task, const auto& for_each_run) {
    Numbers scratch((4 * gaussian.taps() + layout.width) * kWindowTile);
    const int64_t item = task / tasks.per_item();
    const double factor = grads[item] * static_cast<double>(bins - 1);
    for_each_run([&](int64_t at, int64_t mask_at, int64_t count) {
      kernel(data<T>(call.pred) + at, data<T>(call.target) + at, offset<Real<T>>(call.mask, mask_at), count, gaussian,
             layout.width, scratch.data(), tables[item].data(), layout.pitch, factor,
             pred_grad == nullptr ? nullptr : pred_grad + at, target_grad == nullptr ? nullptr : target_grad + at);
    });
  });
}

// Returns the gradients to pred and target, of the images' dtype and shape; none where not asked for.
// slopes, ranges: as forward returned them.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> backward(const Tensor& grad_output, const Tensor& slopes,
                                                                  const Tensor& ranges, const Tensor& pred,
                                                                  const Tensor& target,
                                                                  const std::optional<Tensor>& mask, int64_t num_bins,
                                                                  bool gaussian, double sigma, int64_t reduction_value,
                                                                  bool pred_grad, bool target_grad) {
  const Reduction reduction = check_reduction(kOp, reduction_value);
  const Call call(pred, target, mask, num_bins, gaussian, sigma);
  const std::vector<double> grads = incoming(call, grad_output, reduction);
  check_dtype(kOp, "slopes", slopes, ScalarType::Double);
  check_dtype(kOp, "ranges", ranges, ScalarType::Double);
  STD_TORCH_CHECK(slopes.numel() == call.items * call.bins * call.bins && ranges.numel() == kEnds + 2 * call.items, kOp,
                  ": slopes and ranges must be those of the forward pass");
  const Tensor table = as_contiguous(slopes), numbers = as_contiguous(ranges);
  const ScalarType dtype = call.pred.scalar_type();
  const std::optional<Tensor> to_pred = new_gradient(call.pred, pred_grad, dtype);
  const std::optional<Tensor> to_target = new_gradient(call.pred, target_grad, dtype);
  dispatch_floating(dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (call.gaussian) {
      write_gaussian_gradients<T>(call, grads, data<double>(table), to_pred, to_target);
      return;
    }
    if (to_pred.has_value()) {
      write_bspline_gradient<T>(call, grads, data<double>(table), data<double>(numbers), *to_pred);
    }
    if (to_target.has_value()) fill<T>(*to_target, 0.0);  // its window is a box
  });
  return {to_pred, to_target};
}

}  // namespace
}  // namespace mutual_information
}  // namespace usreg

// The schemas stand in Python (usreg_kernels/ops/mutual_information).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("mutual_information_native_forward", TORCH_BOX(&usreg::mutual_information::forward));
  m.impl("mutual_information_native_backward", TORCH_BOX(&usreg::mutual_information::backward));
}
