// A call of warp: its tensors, checked and contiguous, and the shapes that follow from them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/tensors.h"

namespace usreg {

struct WarpCall {
  WarpCall(const char* op_name, const Tensor& image_arg, const std::optional<Tensor>& field_arg,
           const std::optional<Tensor>& affine_arg, std::vector<int64_t> output_size)
      : op(op_name), dtype(image_arg.scalar_type()), size(std::move(output_size)) {
    dims = static_cast<int>(image_arg.dim()) - 2;
    STD_TORCH_CHECK(dims >= 1 && dims <= 3, op, ": image must be (B, C, spatial...) with 1, 2 or 3 spatial dims, not ",
                    shape_text(image_arg));
    STD_TORCH_CHECK(static_cast<int>(size.size()) == dims, op, ": size must have ", dims, " numbers");
    for (int64_t i = 2; i < image_arg.dim(); ++i) {
      STD_TORCH_CHECK(image_arg.size(i) > 0, op, ": image must have voxels, not ", shape_text(image_arg));
    }
    if (field_arg.has_value()) check_field(image_arg, *field_arg);
    if (affine_arg.has_value()) check_affine(image_arg, *affine_arg);
    image = as_contiguous(image_arg);
    field = as_contiguous(field_arg);
    affine = as_contiguous(affine_arg);
  }

  void check_field(const Tensor& image_arg, const Tensor& field_arg) const {
    check_same_device(op, "ddf", field_arg, image_arg);
    check_dtype(op, "ddf", field_arg, dtype);
    bool fits =
        field_arg.dim() == image_arg.dim() && field_arg.size(0) == image_arg.size(0) && field_arg.size(1) == dims;
    for (int i = 0; fits && i < dims; ++i) fits = field_arg.size(i + 2) == size[i];
    STD_TORCH_CHECK(fits, op, ": ddf must be (B, ", dims, ", size...), not ", shape_text(field_arg));
  }

  void check_affine(const Tensor& image_arg, const Tensor& affine_arg) const {
    check_same_device(op, "affine", affine_arg, image_arg);
    check_dtype(op, "affine", affine_arg, real_dtype(dtype));
    const bool fits = affine_arg.dim() == 3 && affine_arg.size(0) == image_arg.size(0) && affine_arg.size(1) == dims &&
                      affine_arg.size(2) == dims + 1;
    STD_TORCH_CHECK(fits, op, ": affine must be (B, ", dims, ", ", dims + 1, "), not ", shape_text(affine_arg));
  }

  void check_grad_output(const Tensor& grad_output) const {
    check_same_device(op, "grad_output", grad_output, image);
    check_dtype(op, "grad_output", grad_output, real_dtype(dtype));
    bool fits = grad_output.dim() == dims + 2;
    for (int64_t i = 0; fits && i < grad_output.dim(); ++i) fits = grad_output.size(i) == output_shape()[i];
    STD_TORCH_CHECK(fits, op, ": grad_output must have the shape of the output, not ", shape_text(grad_output));
  }

  std::vector<int64_t> output_shape() const {
    std::vector<int64_t> shape = {image.size(0), image.size(1)};
    shape.insert(shape.end(), size.begin(), size.end());
    return shape;
  }

  // Sizes along z, y, x, of which the first ones are 1 where there are fewer dimensions.
  int64_t image_size(int axis) const { return axis < 3 - dims ? 1 : image.size(axis - 3 + dims + 2); }
  int64_t output_size(int axis) const { return axis < 3 - dims ? 1 : size[axis - 3 + dims]; }

  const char* op;
  ScalarType dtype;  // of image and field
  std::vector<int64_t> size;
  int dims;
  Tensor image;
  std::optional<Tensor> field, affine;
};

// The composition of two fields is the warp of one by the other.
inline WarpCall compose_call(const Tensor& outer, const Tensor& inner) {
  constexpr const char* kOp = "compose_ddf";
  check_pair(kOp, "outer", outer, "inner", inner);
  STD_TORCH_CHECK(outer.size(1) == outer.dim() - 2, kOp, ": fields need a component per axis, not ", shape_text(outer));
  std::vector<int64_t> size;
  for (int64_t i = 2; i < outer.dim(); ++i) size.push_back(outer.size(i));
  return WarpCall(kOp, outer, inner, std::nullopt, size);
}

}  // namespace usreg
