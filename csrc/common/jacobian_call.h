// A call of the Jacobian determinant or of the folding loss: its arguments, checked, and what follows from them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "common/checks.h"
#include "common/reduction.h"

namespace usreg {

struct JacobianCall {
  const char* op;
  int dims;
  int64_t batch;
  int64_t size[3] = {1, 1, 1};  // z, y, x; axes that a field of fewer dimensions lacks come first
  double scale[3] = {1, 1, 1};  // what multiplies the derivatives along each axis
  bool folds = false;           // whether it is the loss
  Reduction reduction = Reduction::kNone;
  double margin = 0;
  double divisor = 1;  // of the sum

  JacobianCall(const char* op_name, const Tensor& ddf, const std::vector<double>& scales)
      : op(op_name), dims(static_cast<int>(ddf.dim()) - 2), batch(ddf.size(0)) {
    STD_TORCH_CHECK(dims >= 1 && dims <= 3, op, ": ddf must be (B, n, spatial...) with 1, 2 or 3 spatial dims, not ",
                    shape_text(ddf));
    STD_TORCH_CHECK(ddf.size(1) == dims, op, ": ddf needs a component per spatial axis, not ", shape_text(ddf));
    STD_TORCH_CHECK(static_cast<int>(scales.size()) == dims, op, ": scales must have ", dims, " numbers, not ",
                    scales.size());
    for (int i = 0; i < dims; ++i) {
      size[3 - dims + i] = ddf.size(i + 2);
      scale[3 - dims + i] = scales[i];
    }
  }

  // The loss.
  JacobianCall(const char* op_name, const Tensor& ddf, const std::vector<double>& scales, double loss_margin,
               int64_t reduction_value)
      : JacobianCall(op_name, ddf, scales) {
    folds = true;
    margin = loss_margin;
    reduction = check_reduction(op, reduction_value);
    if (reduction == Reduction::kMean) divisor = static_cast<double>(batch * voxels());
  }

  int64_t voxels() const { return size[0] * size[1] * size[2]; }
  bool keeps_map() const { return reduction == Reduction::kNone; }

  // The shape of the output.
  std::vector<int64_t> sizes() const {
    if (!keeps_map()) return {};
    std::vector<int64_t> found = {batch, 1};
    found.insert(found.end(), size + 3 - dims, size + 3);
    return found;
  }

  // grad_output: of the output's dtype and shape.
  void check_grad_output(const Tensor& grad_output, const Tensor& ddf) const {
    check_same_device(op, "grad_output", grad_output, ddf);
    check_dtype(op, "grad_output", grad_output, real_dtype(ddf.scalar_type()));
    const std::vector<int64_t> wanted = sizes();
    bool fits = grad_output.dim() == static_cast<int64_t>(wanted.size());
    for (size_t i = 0; fits && i < wanted.size(); ++i) fits = grad_output.size(i) == wanted[i];
    STD_TORCH_CHECK(fits, op, ": grad_output must have the shape of the output, not ", shape_text(grad_output));
  }
};

}  // namespace usreg
