// Gradient smoothness and bending energy on CPUs, forward and backward; common/field_terms.h explains what they share.
// Supervision of a field is gradient smoothness with a second term, taken up while a row is in the cache.
//
// Fields are cut into blocks of rows of fixed size, each with a sum of its own, so that the result has the same bits
// for any number of threads. The values of a row are computed in the type of the field (float32 for half precision),
// sums are float64.

#include "cpu/field_losses/field_losses.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/dtypes.h"
#include "common/field_loss_call.h"
#include "common/reduction.h"
#include "common/tensors.h"
#include "cpu/support/capability.h"
#include "cpu/support/memory.h"
#include "cpu/support/parallel.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

#define USREG_KERNEL_BODY "cpu/field_losses/kernel.inc"
#include "cpu/support/for_each_isa.inc"

namespace usreg {
namespace {

// The loss as the kernels evaluate it.
FieldTerms make_terms(const FieldLossCall& loss) {
  FieldTerms terms = {};
  terms.penalty = loss.penalty;
  terms.difference_count = loss.stencil.difference_count;
  terms.share_count = loss.stencil.share_count;
  std::copy_n(loss.stencil.shares, loss.stencil.share_count, terms.shares);
  const int first_axis = loss.shape.first_axis;
  for (int axis = 0; axis < 3; ++axis) {
    terms.map.begin[axis] = loss.map_begin(axis);
    terms.map.end[axis] = loss.map_begin(axis) + loss.map_size(axis);
    for (int k = 0; k < terms.difference_count; ++k) {
      Difference& difference = terms.differences[k];
      difference.region.begin[axis] = loss.stencil.distance_from_first(k, first_axis).along(axis);
      difference.region.end[axis] = loss.shape.size[axis] - loss.stencil.distance_from_last(k, first_axis).along(axis);
    }
  }
  for (int k = 0; k < terms.difference_count; ++k) {
    const Taps& taps = loss.stencil.differences[k];
    terms.differences[k].tap_count = taps.count;
    std::copy_n(taps.at, taps.count, terms.differences[k].taps);
  }
  return terms;
}

// Rows of a field in blocks of fixed size, whatever the number of threads.
class RowBlocks {
 public:
  explicit RowBlocks(const FieldShape& shape) : rows_(shape.rows()) {
    constexpr int64_t kVoxels = 16384;  // in a block, about
    rows_per_block_ = std::max<int64_t>(1, kVoxels / std::max<int64_t>(1, shape.size[2]));
  }

  int64_t count() const { return (rows_ + rows_per_block_ - 1) / rows_per_block_; }

  // Calls function(block, first_row, last_row) for each block, from several threads.
  template <class Function>
  void parallel_for(const Function& function) const {
    usreg::parallel_for(count(), 2, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t row = block * rows_per_block_;
        function(block, row, std::min(rows_, row + rows_per_block_));
      }
    });
  }

 private:
  int64_t rows_, rows_per_block_;
};

// A second term beside a field's differences: the squared distance to a known field, voxel by voxel.
struct KnownField {
  const Tensor& dvf;
  double weight;
};

// Gradients to a field and to a known one.
using Gradients = std::tuple<std::optional<Tensor>, std::optional<Tensor>>;

// Returns the loss: a scalar for mean and sum, else the map; float64 for float64 fields, else float32.
Tensor forward(const Tensor& dvf, const FieldLossCall& loss, const KnownField* known = nullptr) {
  check_on_cpu(loss.op, "dvf", dvf);
  const Tensor field = as_contiguous(dvf), other = known == nullptr ? field : as_contiguous(known->dvf);
  const bool keep_map = loss.reduction == Reduction::kNone;
  const FieldTerms terms = make_terms(loss);
  Tensor output = new_output(field, loss.sizes(dvf), real_dtype(field.scalar_type()));
  dispatch_floating(field.scalar_type(), loss.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const std::vector<R> weights(loss.weights.begin(), loss.weights.end());
    auto* result = static_cast<R*>(output.mutable_data_ptr());
    FieldLoss<T, R> problem = {};
    problem.shape = loss.shape;
    problem.terms = &terms;
    problem.weights = weights.data();
    problem.field = static_cast<const T*>(field.const_data_ptr());
    if (keep_map) problem.map = result;
    if (known != nullptr) {
      problem.other = static_cast<const T*>(other.const_data_ptr());
      problem.error_weight = static_cast<R>(known->weight);
    }

    const auto kernel = USREG_SELECT(field_loss_sum<T, R>);
    const RowBlocks blocks(loss.shape);
    std::vector<double> sums(blocks.count());
    blocks.parallel_for([&](int64_t block, int64_t first_row, int64_t last_row) {
      kernel(problem, first_row, last_row, &sums[block]);
    });
    if (keep_map) return;
    double total = 0;
    for (double sum : sums) total += sum;
    *result = static_cast<R>(total / loss.divisor);
  });
  return output;
}

// Returns the gradients to the field and to the known one, of their dtype and shape; none where not asked for.
// grad_output: of the loss' dtype and shape; it is multiplied in before rounding to the field's dtype, since a mean
// over many voxels has gradients that float16 cannot hold until a GradScaler's factor is in them.
Gradients backward(const Tensor& grad_output, const Tensor& dvf, const FieldLossCall& loss, bool dvf_grad = true,
                   const KnownField* known = nullptr, bool known_grad = false) {
  check_on_cpu(loss.op, "dvf", dvf);
  loss.check_grad_output(grad_output, dvf);

  const Tensor field = as_contiguous(dvf), other = known == nullptr ? field : as_contiguous(known->dvf);
  const Tensor grad = as_contiguous(grad_output);
  const std::optional<Tensor> to_field = new_gradient(field, dvf_grad, field.scalar_type());
  const std::optional<Tensor> to_known = new_gradient(field, known_grad, field.scalar_type());
  if (field.numel() == 0 || !(dvf_grad || known_grad)) return {to_field, to_known};
  const FieldTerms terms = make_terms(loss);
  dispatch_floating(field.scalar_type(), loss.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const std::vector<R> weights(loss.weights.begin(), loss.weights.end());
    const auto* factors = static_cast<const R*>(grad.const_data_ptr());
    const bool has_map = loss.reduction == Reduction::kNone;
    const double factor = (has_map ? 1 : static_cast<double>(*factors)) / loss.divisor;
    FieldLoss<T, R> problem = {};
    problem.shape = loss.shape;
    problem.terms = &terms;
    problem.weights = weights.data();
    problem.field = static_cast<const T*>(field.const_data_ptr());
    if (dvf_grad) problem.gradient = static_cast<T*>(to_field->mutable_data_ptr());
    if (has_map) problem.grad_map = factors;
    if (known != nullptr) {
      problem.other = static_cast<const T*>(other.const_data_ptr());
      problem.error_weight = static_cast<R>(2 * known->weight * factor);
      if (known_grad) problem.other_gradient = static_cast<T*>(to_known->mutable_data_ptr());
    }

    const auto kernel = USREG_SELECT(field_loss_gradient<T, R>);
    RowBlocks(loss.shape).parallel_for([&](int64_t, int64_t first_row, int64_t last_row) {
      kernel(problem, factor, first_row, last_row);
    });
  });
  return {to_field, to_known};
}

Tensor gradient_of_field(const Tensor& grad_output, const Tensor& dvf, const FieldLossCall& loss) {
  return *std::get<0>(backward(grad_output, dvf, loss));
}

Tensor smoothness_forward(const Tensor& dvf, bool magnitude, bool central, std::vector<double> weights, double divisor,
                          int64_t reduction) {
  return forward(dvf, smoothness_call(dvf, magnitude, central, std::move(weights), divisor, reduction));
}

Tensor smoothness_backward(const Tensor& grad_output, const Tensor& dvf, bool magnitude, bool central,
                           std::vector<double> weights, double divisor, int64_t reduction) {
  return gradient_of_field(grad_output, dvf,
                           smoothness_call(dvf, magnitude, central, std::move(weights), divisor, reduction));
}

Tensor bending_forward(const Tensor& dvf, std::vector<double> weights, double divisor, int64_t reduction) {
  return forward(dvf, bending_call(dvf, std::move(weights), divisor, reduction));
}

Tensor bending_backward(const Tensor& grad_output, const Tensor& dvf, std::vector<double> weights, double divisor,
                        int64_t reduction) {
  return gradient_of_field(grad_output, dvf, bending_call(dvf, std::move(weights), divisor, reduction));
}

// mse_weight * mean squared error + gradient smoothness (forward differences, squared, mean) of these weights.
FieldLossCall supervision_call(const Tensor& pred_dvf, const Tensor& gt_dvf, std::vector<double> weights) {
  constexpr const char* kOp = "dvf_supervision";
  check_pair(kOp, "pred_dvf", pred_dvf, "gt_dvf", gt_dvf);
  return {kOp,
          pred_dvf,
          FieldLossKind::kForwardDifferences,
          Penalty::kSquare,
          std::move(weights),
          static_cast<double>(pred_dvf.numel()),
          static_cast<int64_t>(Reduction::kMean)};
}

Tensor supervision_forward(const Tensor& pred_dvf, const Tensor& gt_dvf, double mse_weight,
                           std::vector<double> weights) {
  const KnownField known = {gt_dvf, mse_weight};
  return forward(pred_dvf, supervision_call(pred_dvf, gt_dvf, std::move(weights)), &known);
}

Gradients supervision_backward(const Tensor& grad_output, const Tensor& pred_dvf, const Tensor& gt_dvf,
                               double mse_weight, std::vector<double> weights, bool pred_grad, bool gt_grad) {
  const KnownField known = {gt_dvf, mse_weight};
  const FieldLossCall call = supervision_call(pred_dvf, gt_dvf, std::move(weights));
  return backward(grad_output, pred_dvf, call, pred_grad, &known, gt_grad);
}

}  // namespace
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/gradient_smoothness, bending_energy and dvf_supervision).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("gradient_smoothness_native_forward", TORCH_BOX(&usreg::smoothness_forward));
  m.impl("gradient_smoothness_native_backward", TORCH_BOX(&usreg::smoothness_backward));
  m.impl("bending_energy_native_forward", TORCH_BOX(&usreg::bending_forward));
  m.impl("bending_energy_native_backward", TORCH_BOX(&usreg::bending_backward));
  m.impl("dvf_supervision_native_forward", TORCH_BOX(&usreg::supervision_forward));
  m.impl("dvf_supervision_native_backward", TORCH_BOX(&usreg::supervision_backward));
}
