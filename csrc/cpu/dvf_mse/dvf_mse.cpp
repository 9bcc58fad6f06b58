// Mean squared error between two displacement fields, forward and backward, each one pass over the fields.
//
// The op is bound by memory: backward reads both fields again rather than have forward write something for it. Fields
// are cut into blocks of fixed size, each with a sum of its own, so that the result has the same bits for any number of
// threads. Sums are float64.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
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
#include "cpu/support/parallel.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

namespace usreg {
namespace {

constexpr int64_t kBlock = 16384;  // elements per block, the unit of work of a thread
constexpr int64_t kTile = 512;     // elements that a kernel holds in the first-level cache; divides kBlock

struct Sums {
  double error = 0;
  double mask = 0;
};

}  // namespace
}  // namespace usreg

#define USREG_KERNEL_BODY "cpu/dvf_mse/kernel.inc"
#include "cpu/support/for_each_isa.inc"

namespace usreg {
namespace {

constexpr const char* kOp = "dvf_mse";

// Cuts a field of shape (B, C, spatial...) into blocks that lie within one row: the whole field, or, where all channels
// share a mask of one channel, a channel's voxels.
class Blocks {
 public:
  struct Block {
    int64_t begin;       // of the field
    int64_t mask_begin;  // of the mask
    int64_t size;
  };

  Blocks(const Tensor& field, const std::optional<Tensor>& mask) {
    const bool shared = mask.has_value() && mask->size(1) != field.size(1);
    const int64_t rows = shared ? field.size(0) * field.size(1) : 1;
    rows_per_mask_ = shared ? field.size(1) : 1;
    row_size_ = rows == 0 ? 0 : field.numel() / rows;
    blocks_per_row_ = (row_size_ + kBlock - 1) / kBlock;
    count_ = rows * blocks_per_row_;
  }

  int64_t count() const { return count_; }

  Block operator[](int64_t index) const {
    const int64_t row = index / blocks_per_row_;
    const int64_t offset = index % blocks_per_row_ * kBlock;
    return {row * row_size_ + offset, row / rows_per_mask_ * row_size_ + offset, std::min(kBlock, row_size_ - offset)};
  }

  // Calls function(index, block) for each block, from several threads.
  template <class Function>
  void parallel_for(const Function& function) const {
    constexpr int64_t kElementsPerTask = 2 * kBlock;  // fewer are not worth waking a thread for
    const int64_t grain = kElementsPerTask / std::max<int64_t>(1, std::min(kBlock, row_size_));
    usreg::parallel_for(count_, grain, [&](int64_t first, int64_t last) {
      for (int64_t index = first; index < last; ++index) function(index, (*this)[index]);
    });
  }

 private:
  int64_t rows_per_mask_, row_size_, blocks_per_row_, count_;
};

// Pointer to a tensor's elements; null where there is no tensor.
template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <class T>
T* offset(T* pointer, int64_t elements) {
  return pointer == nullptr ? nullptr : pointer + elements;
}

// Sums over the whole field; map: null, or where the terms go.
template <class T>
Sums sum_errors(const Tensor& pred_dvf, const Tensor& gt_dvf, const std::optional<Tensor>& mask, Real<T>* map) {
  const Blocks blocks(pred_dvf, mask);
  const T* pred = data<T>(pred_dvf);
  const T* gt = data<T>(gt_dvf);
  const Real<T>* weights = data<Real<T>>(mask);
  const auto kernel = USREG_SELECT(dvf_mse_sum<T>);

  std::vector<Sums> partial(blocks.count());
  blocks.parallel_for([&](int64_t index, const Blocks::Block& block) {
    kernel(pred + block.begin, gt + block.begin, offset(weights, block.mask_begin), offset(map, block.begin),
           block.size, &partial[index]);
  });
  Sums total;
  for (const Sums& sums : partial) {
    total.error += sums.error;
    total.mask += sums.mask;
  }
  return total;
}

// What a sum is divided by: nothing for a mask without weight, whose loss is 0 (or NaN, if something is).
double divisor(double weight) { return weight == 0 ? 1 : weight; }

void check_fields(const Tensor& pred_dvf, const Tensor& gt_dvf, const std::optional<Tensor>& mask) {
  check_pair(kOp, "pred_dvf", pred_dvf, "gt_dvf", gt_dvf);
  if (mask.has_value()) check_mask(kOp, *mask, pred_dvf);
}

// Returns (loss, weight). loss: scalar for mean and sum, of the field's shape for none; float64 for float64 fields,
// else float32. weight: float64 scalar, what the sum was divided by (1 for sum and none).
std::tuple<Tensor, Tensor> dvf_mse_forward(const Tensor& pred_dvf, const Tensor& gt_dvf,
                                           const std::optional<Tensor>& mask, int64_t reduction_value) {
  const Reduction reduction = check_reduction(kOp, reduction_value);
  check_fields(pred_dvf, gt_dvf, mask);

  const Tensor pred = as_contiguous(pred_dvf), gt = as_contiguous(gt_dvf);
  const std::optional<Tensor> weights = as_contiguous(mask);
  const bool keep_map = reduction == Reduction::kNone;
  const ScalarType loss_dtype = real_dtype(pred.scalar_type());
  Tensor loss = keep_map ? new_output(pred, pred.sizes(), loss_dtype) : new_output(pred, {}, loss_dtype);
  Tensor weight = new_output(pred, {}, ScalarType::Double);

  dispatch_floating(pred.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* result = static_cast<Real<T>*>(loss.mutable_data_ptr());
    const Sums sums = sum_errors<T>(pred, gt, weights, keep_map ? result : nullptr);
    double total_weight = 1;
    if (reduction == Reduction::kMean) {
      total_weight = weights.has_value() ? sums.mask : static_cast<double>(pred.numel());
    }
    if (!keep_map) {
      const bool mean_of_nothing = reduction == Reduction::kMean && pred.numel() == 0;
      *result = static_cast<Real<T>>(mean_of_nothing ? std::numeric_limits<double>::quiet_NaN()
                                                     : sums.error / divisor(total_weight));
    }
    *static_cast<double*>(weight.mutable_data_ptr()) = total_weight;
  });
  return {loss, weight};
}

// Returns the gradients to pred_dvf and gt_dvf, of the fields' dtype and shape; none where not asked for.
// grad_output: of the loss' dtype and shape. weight: as forward returned it.
// grad_output is multiplied in before rounding to the fields' dtype: a mean over many voxels has gradients that
// float16 cannot hold until a GradScaler's factor is in them.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> dvf_mse_backward(const Tensor& grad_output,
                                                                          const Tensor& pred_dvf, const Tensor& gt_dvf,
                                                                          const std::optional<Tensor>& mask,
                                                                          const Tensor& weight, int64_t reduction_value,
                                                                          bool pred_grad, bool gt_grad) {
  const Reduction reduction = check_reduction(kOp, reduction_value);
  check_fields(pred_dvf, gt_dvf, mask);
  const bool has_map = reduction == Reduction::kNone;
  check_grad_output(kOp, grad_output, pred_dvf, has_map);
  check_scalar(kOp, "weight", weight, pred_dvf);

  const Tensor pred = as_contiguous(pred_dvf), gt = as_contiguous(gt_dvf);
  const std::optional<Tensor> weights = as_contiguous(mask);
  const Tensor grad = as_contiguous(grad_output);
  const std::optional<Tensor> to_pred = new_gradient(pred, pred_grad, pred.scalar_type());
  const std::optional<Tensor> to_gt = new_gradient(pred, gt_grad, pred.scalar_type());

  dispatch_floating(pred.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* p = data<T>(pred);
    const T* g = data<T>(gt);
    const Real<T>* m = data<Real<T>>(weights);
    const Real<T>* grad_map = has_map ? data<Real<T>>(grad) : nullptr;
    T* pred_out = pred_grad ? static_cast<T*>(to_pred->mutable_data_ptr()) : nullptr;
    T* gt_out = gt_grad ? static_cast<T*>(to_gt->mutable_data_ptr()) : nullptr;
    const double grad_scalar = has_map ? 1 : static_cast<double>(*data<Real<T>>(grad));
    const auto scale = static_cast<Real<T>>(2 * grad_scalar / divisor(*data<double>(weight)));
    const auto kernel = USREG_SELECT(dvf_mse_gradient<T>);

    Blocks(pred, weights).parallel_for([&](int64_t, const Blocks::Block& block) {
      kernel(p + block.begin, g + block.begin, offset(m, block.mask_begin), offset(grad_map, block.begin), scale,
             block.size, offset(pred_out, block.begin), offset(gt_out, block.begin));
    });
  });
  return {to_pred, to_gt};
}

}  // namespace
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/dvf_mse).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("dvf_mse_native_forward", TORCH_BOX(&usreg::dvf_mse_forward));
  m.impl("dvf_mse_native_backward", TORCH_BOX(&usreg::dvf_mse_backward));
}
