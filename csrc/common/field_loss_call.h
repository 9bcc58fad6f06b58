// A call of a loss of a displacement field's differences: its arguments, checked, and what follows from them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/field_terms.h"
#include "common/reduction.h"

namespace usreg {

inline FieldShape checked_field_shape(const char* op, const Tensor& dvf) {
  STD_TORCH_CHECK(dvf.dim() >= 3 && dvf.dim() <= 5, op,
                  ": dvf must be (B, n, spatial...) with 1, 2 or 3 spatial dims, ", "not ", shape_text(dvf));
  FieldShape shape{dvf.size(0) * dvf.size(1), dvf.size(1), static_cast<int>(5 - dvf.dim()), {1, 1, 1}};
  for (int axis = shape.first_axis; axis < 3; ++axis) shape.size[axis] = dvf.size(axis - shape.first_axis + 2);
  return shape;
}

struct FieldLossCall {
  const char* op;
  FieldLossKind kind;
  Penalty penalty;
  Reduction reduction;
  FieldShape shape;
  FieldStencil stencil;
  std::vector<double> weights;  // (channels, differences): what multiplies each penalty
  double divisor;               // of their sum

  FieldLossCall(const char* op_name, const Tensor& dvf, FieldLossKind loss_kind, Penalty loss_penalty,
                std::vector<double> penalty_weights, double sum_divisor, int64_t reduction_value)
      : op(op_name),
        kind(loss_kind),
        penalty(loss_penalty),
        reduction(check_reduction(op_name, reduction_value)),
        shape(checked_field_shape(op_name, dvf)),
        stencil(field_stencil(loss_kind, shape.first_axis)),
        weights(std::move(penalty_weights)),
        divisor(sum_divisor) {
    const int64_t count = stencil.difference_count;
    STD_TORCH_CHECK(static_cast<int64_t>(weights.size()) == shape.channels * count, op, ": ", shape.channels,
                    " channels need ", count, " weights each, not ", weights.size(), " in all");
  }

  // Where the loss map begins in the field, and how large it is.
  int64_t map_begin(int axis) const {
    return std::min<int64_t>(axis < shape.first_axis ? 0 : stencil.margin, shape.size[axis]);
  }
  int64_t map_size(int axis) const { return std::max<int64_t>(0, shape.size[axis] - 2 * map_begin(axis)); }

  // The shape of the loss of a field.
  std::vector<int64_t> sizes(const Tensor& dvf) const {
    if (reduction != Reduction::kNone) return {};
    std::vector<int64_t> found = {dvf.size(0), dvf.size(1)};
    for (int axis = shape.first_axis; axis < 3; ++axis) found.push_back(map_size(axis));
    return found;
  }

  // grad_output: of the loss' dtype and shape.
  void check_grad_output(const Tensor& grad_output, const Tensor& dvf) const {
    check_same_device(op, "grad_output", grad_output, dvf);
    check_dtype(op, "grad_output", grad_output, real_dtype(dvf.scalar_type()));
    const std::vector<int64_t> wanted = sizes(dvf);
    bool fits = grad_output.dim() == static_cast<int64_t>(wanted.size());
    for (size_t i = 0; fits && i < wanted.size(); ++i) fits = grad_output.size(i) == wanted[i];
    STD_TORCH_CHECK(fits, op, ": grad_output must have the shape of the loss, not ", shape_text(grad_output));
  }
};

// weights: (channels, axes).
inline FieldLossCall smoothness_call(const Tensor& dvf, bool magnitude, bool central, std::vector<double> weights,
                                     double divisor, int64_t reduction) {
  return {"gradient_smoothness",
          dvf,
          central ? FieldLossKind::kCentralDifferences : FieldLossKind::kForwardDifferences,
          magnitude ? Penalty::kMagnitude : Penalty::kSquare,
          std::move(weights),
          divisor,
          reduction};
}

// weights: (channels, unordered pairs of axes).
inline FieldLossCall bending_call(const Tensor& dvf, std::vector<double> weights, double divisor, int64_t reduction) {
  return {"bending_energy", dvf,      FieldLossKind::kBendingEnergy, Penalty::kSquare, std::move(weights),
          divisor,          reduction};
}

}  // namespace usreg
