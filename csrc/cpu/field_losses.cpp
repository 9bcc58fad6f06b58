// Gradient smoothness and bending energy on CPUs, forward and backward; field_losses.h explains what they share.
//
// Fields are cut into blocks of rows of fixed size, each with a sum of its own, so that the result has the same bits
// for any number of threads. The values of a row are computed in the type of the field (float32 for half precision),
// sums are float64.

#include "cpu/field_losses.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/capability.h"
#include "common/checks.h"
#include "common/dtypes.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/reduction.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

#define USREG_KERNEL_BODY "cpu/field_losses_kernel.inc"
#include "common/for_each_isa.inc"

namespace usreg {
namespace {

FieldShape checked_shape(const char* op, const Tensor& dvf) {
  check_on_cpu(op, "dvf", dvf);
  STD_TORCH_CHECK(dvf.dim() >= 3 && dvf.dim() <= 5, op,
                  ": dvf must be (B, n, spatial...) with 1, 2 or 3 spatial dims, ", "not ", shape_text(dvf));
  FieldShape shape{dvf.size(0) * dvf.size(1), dvf.size(1), static_cast<int>(5 - dvf.dim()), {1, 1, 1}};
  for (int axis = shape.first_axis; axis < 3; ++axis) shape.size[axis] = dvf.size(axis - shape.first_axis + 2);
  return shape;
}

int component(const Offset& offset, int axis) { return axis == 0 ? offset.z : axis == 1 ? offset.y : offset.x; }

Offset along(int axis, int voxels) { return {axis == 0 ? voxels : 0, axis == 1 ? voxels : 0, axis == 2 ? voxels : 0}; }

Offset operator+(const Offset& a, const Offset& b) { return {a.z + b.z, a.y + b.y, a.x + b.x}; }

bool operator==(const Offset& a, const Offset& b) { return a.z == b.z && a.y == b.y && a.x == b.x; }

// A loss in the making: its terms, and what the kernel does not need to know.
struct Loss {
  const char* op;
  FieldShape shape;
  Reduction reduction;
  FieldTerms terms = {};
  std::vector<double> factors;  // of each difference's penalty
  std::vector<double> weights;  // (channels, differences): these factors, times the penalties of the call's scales
  double divisor = 1;           // of the sum

  // margin: how many voxels at each border the loss map leaves out.
  Loss(const char* op_name, const Tensor& dvf, int64_t reduction_value, Penalty penalty, int margin)
      : op(op_name), shape(checked_shape(op_name, dvf)), reduction(check_reduction(op_name, reduction_value)) {
    terms.penalty = penalty;
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t cut = axis < shape.first_axis ? 0 : margin;
      terms.map.begin[axis] = std::min(cut, shape.size[axis]);
      terms.map.end[axis] = std::max(terms.map.begin[axis], shape.size[axis] - cut);
    }
  }

  // Adds a difference, which exists at all voxels of the loss map around which its taps lie within the volume.
  void add(const std::vector<Offset>& taps, double factor) {
    Difference& difference = terms.differences[terms.difference_count];
    difference.tap_count = static_cast<int>(taps.size());
    std::copy(taps.begin(), taps.end(), difference.taps);
    difference.region = terms.map;
    for (const Offset& tap : taps) {
      for (int axis = 0; axis < 3; ++axis) {
        int64_t& begin = difference.region.begin[axis];
        int64_t& end = difference.region.end[axis];
        begin = std::max<int64_t>(begin, -component(tap, axis));
        end = std::min<int64_t>(end, shape.size[axis] - component(tap, axis));
      }
    }
    share_out(terms.difference_count);
    factors.push_back(factor);
    ++terms.difference_count;
  }

  // scales: (channels, differences), what multiplies each difference.
  void finish(const std::vector<double>& scales) {
    STD_TORCH_CHECK(static_cast<int64_t>(scales.size()) == shape.channels * terms.difference_count, op, ": ",
                    shape.channels, " channels need ", terms.difference_count, " scales each, not ", scales.size(),
                    " in all");
    for (size_t i = 0; i < scales.size(); ++i) {
      const double scale = terms.penalty == Penalty::kSquare ? scales[i] * scales[i] : std::abs(scales[i]);
      weights.push_back(factors[i % factors.size()] * scale);
    }
    if (reduction == Reduction::kMean) divisor = static_cast<double>(shape.components * terms.map.numel());
  }

  // The shape of the loss of a field.
  std::vector<int64_t> sizes(const Tensor& dvf) const {
    if (reduction != Reduction::kNone) return {};
    std::vector<int64_t> found = {dvf.size(0), dvf.size(1)};
    for (int axis = shape.first_axis; axis < 3; ++axis) found.push_back(terms.map.size(axis));
    return found;
  }

 private:
  // Which voxels take part in a difference: the adjoint of its taps, those of one offset together.
  void share_out(int index) {
    constexpr int kSigns[] = {1, -1, -1, 1};
    const Difference& difference = terms.differences[index];
    Share* const first = terms.shares + terms.share_count;
    for (int i = 0; i < difference.tap_count; ++i) {
      const Offset& tap = difference.taps[i];
      Share* const last = terms.shares + terms.share_count;
      Share* const found = std::find_if(first, last, [&](const Share& share) { return share.offset == tap; });
      if (found == last) {
        *found = {index, tap, 0};
        ++terms.share_count;
      }
      found->factor += kSigns[i];
    }
  }
};

// scales: (channels, axes), what multiplies the differences.
Loss smoothness(const Tensor& dvf, bool magnitude, bool central, const std::vector<double>& scales, int64_t reduction) {
  const Penalty penalty = magnitude ? Penalty::kMagnitude : Penalty::kSquare;
  Loss loss("gradient_smoothness", dvf, reduction, penalty, central ? 1 : 0);
  for (int axis = loss.shape.first_axis; axis < 3; ++axis) {
    if (central) {
      loss.add({along(axis, 1), along(axis, -1)}, magnitude ? 1.0 / 2 : 1.0 / 4);
    } else {
      // The mean is over an axis' own differences, of which there is one less along it than there are voxels.
      const auto size = static_cast<double>(loss.shape.size[axis]);
      const bool mean = loss.reduction == Reduction::kMean;
      loss.add({along(axis, 1), along(axis, 0)}, mean && size > 1 ? size / (size - 1) : 1);
    }
  }
  loss.finish(scales);
  return loss;
}

// scales: (channels, unordered pairs of axes, in the order of the loops), what multiplies the second derivatives.
Loss bending(const Tensor& dvf, const std::vector<double>& scales, int64_t reduction) {
  Loss loss("bending_energy", dvf, reduction, Penalty::kSquare, 1);
  for (int first = loss.shape.first_axis; first < 3; ++first) {
    loss.add({along(first, 1), along(first, 0), along(first, 0), along(first, -1)}, 1);
    for (int second = first + 1; second < 3; ++second) {
      // The derivative is a quarter of the difference, and the pair counts twice.
      loss.add({along(first, 1) + along(second, 1), along(first, 1) + along(second, -1),
                along(first, -1) + along(second, 1), along(first, -1) + along(second, -1)},
               2.0 / 16);
    }
  }
  loss.finish(scales);
  return loss;
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

// Returns the loss: a scalar for mean and sum, else the map; float64 for float64 fields, else float32.
Tensor forward(const Tensor& dvf, const Loss& loss) {
  const Tensor field = torch::stable::contiguous(dvf);
  const bool keep_map = loss.reduction == Reduction::kNone;
  Tensor output = new_output(field, loss.sizes(dvf), real_dtype(field.scalar_type()));
  dispatch_floating(field.scalar_type(), loss.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const std::vector<R> weights(loss.weights.begin(), loss.weights.end());
    auto* result = static_cast<R*>(output.mutable_data_ptr());
    FieldLoss<T, R> problem = {};
    problem.shape = loss.shape;
    problem.terms = &loss.terms;
    problem.weights = weights.data();
    problem.field = static_cast<const T*>(field.const_data_ptr());
    if (keep_map) problem.map = result;

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

// Returns the gradient, of the field's dtype and shape. grad_output: of the loss' dtype and shape; it is multiplied in
// before rounding to the field's dtype, since a mean over many voxels has gradients that float16 cannot hold until a
// GradScaler's factor is in them.
Tensor backward(const Tensor& grad_output, const Tensor& dvf, const Loss& loss) {
  check_on_cpu(loss.op, "grad_output", grad_output);
  check_dtype(loss.op, "grad_output", grad_output, real_dtype(dvf.scalar_type()));
  const std::vector<int64_t> sizes = loss.sizes(dvf);
  bool fits = grad_output.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = grad_output.size(i) == sizes[i];
  STD_TORCH_CHECK(fits, loss.op, ": grad_output must have the shape of the loss, not ", shape_text(grad_output));

  const Tensor field = torch::stable::contiguous(dvf), grad = torch::stable::contiguous(grad_output);
  Tensor gradient = new_output(field, field.sizes(), field.scalar_type());
  if (field.numel() == 0) return gradient;
  dispatch_floating(field.scalar_type(), loss.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const std::vector<R> weights(loss.weights.begin(), loss.weights.end());
    const auto* factors = static_cast<const R*>(grad.const_data_ptr());
    const bool has_map = loss.reduction == Reduction::kNone;
    FieldLoss<T, R> problem = {};
    problem.shape = loss.shape;
    problem.terms = &loss.terms;
    problem.weights = weights.data();
    problem.field = static_cast<const T*>(field.const_data_ptr());
    problem.gradient = static_cast<T*>(gradient.mutable_data_ptr());
    if (has_map) problem.grad_map = factors;

    const double factor = (has_map ? 1 : static_cast<double>(*factors)) / loss.divisor;
    const auto kernel = USREG_SELECT(field_loss_gradient<T, R>);
    RowBlocks(loss.shape).parallel_for([&](int64_t, int64_t first_row, int64_t last_row) {
      kernel(problem, factor, first_row, last_row);
    });
  });
  return gradient;
}

Tensor smoothness_forward(const Tensor& dvf, bool magnitude, bool central, std::vector<double> scales,
                          int64_t reduction) {
  return forward(dvf, smoothness(dvf, magnitude, central, scales, reduction));
}

Tensor smoothness_backward(const Tensor& grad_output, const Tensor& dvf, bool magnitude, bool central,
                           std::vector<double> scales, int64_t reduction) {
  return backward(grad_output, dvf, smoothness(dvf, magnitude, central, scales, reduction));
}

Tensor bending_forward(const Tensor& dvf, std::vector<double> scales, int64_t reduction) {
  return forward(dvf, bending(dvf, scales, reduction));
}

Tensor bending_backward(const Tensor& grad_output, const Tensor& dvf, std::vector<double> scales, int64_t reduction) {
  return backward(grad_output, dvf, bending(dvf, scales, reduction));
}

}  // namespace
}  // namespace usreg

// The schemas stand in Python (usreg_kernels/ops/gradient_smoothness and usreg_kernels/ops/bending_energy).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("gradient_smoothness_native_forward", TORCH_BOX(&usreg::smoothness_forward));
  m.impl("gradient_smoothness_native_backward", TORCH_BOX(&usreg::smoothness_backward));
  m.impl("bending_energy_native_forward", TORCH_BOX(&usreg::bending_forward));
  m.impl("bending_energy_native_backward", TORCH_BOX(&usreg::bending_backward));
}
