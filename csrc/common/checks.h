// Argument checks that the ops share. Python checks too, with more to say; these keep a direct call of an op from
// reading memory that is not there. All of them belong before parallel_for, which loses the text of an error.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <sstream>
#include <string>

#include "common/dtypes.h"

namespace usreg {

using torch::stable::Tensor;

// "(1, 3, 16, 16, 16)", as Python prints a shape
inline std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << (tensor.dim() == 1 ? ",)" : ")");
  return text.str();
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i)) return false;
  }
  return true;
}

inline void check_on_cpu(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be a CPU tensor");
}

// torch calls a library's kernel where any tensor is on its device: all must be.
inline void check_same_device(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  STD_TORCH_CHECK(tensor.device() == input.device(), op, ": ", name, " must be on the device of the inputs");
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType wanted) {
  STD_TORCH_CHECK(tensor.scalar_type() == wanted, op, ": ", name, " must be ", torch::headeronly::toString(wanted),
                  ", not ", torch::headeronly::toString(tensor.scalar_type()));
}

// Two inputs of shape (B, C, spatial...), 1 to 3 spatial dims, of one dtype and device.
inline void check_pair(const char* op, const char* name_a, const Tensor& a, const char* name_b, const Tensor& b) {
  check_same_device(op, name_b, b, a);
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": dtypes differ: ", name_a, " is ",
                  torch::headeronly::toString(a.scalar_type()), ", ", name_b, " is ",
                  torch::headeronly::toString(b.scalar_type()));
  STD_TORCH_CHECK(same_shape(a, b), op, ": shapes differ: ", name_a, " is ", shape_text(a), ", ", name_b, " is ",
                  shape_text(b));
  STD_TORCH_CHECK(a.dim() >= 3 && a.dim() <= 5, op, ": inputs must be (B, C, spatial...) with 1, 2 or 3 spatial dims, ",
                  "not ", shape_text(a));
}

// A mask of shape (B, 1 or C, spatial...) for an input of shape (B, C, spatial...), of the dtype that it computes in.
inline void check_mask(const char* op, const Tensor& mask, const Tensor& input) {
  check_same_device(op, "mask", mask, input);
  check_dtype(op, "mask", mask, real_dtype(input.scalar_type()));
  bool fits = mask.dim() == input.dim();
  for (int64_t i = 0; fits && i < mask.dim(); ++i) {
    fits = mask.size(i) == input.size(i) || (i == 1 && mask.size(i) == 1);
  }
  STD_TORCH_CHECK(fits, op, ": mask is ", shape_text(mask), ", but the input is ", shape_text(input),
                  ": it must be the same, or have one channel");
}

// The incoming gradient of a loss: a scalar, or for a map of the input's shape.
inline void check_grad_output(const char* op, const Tensor& grad_output, const Tensor& input, bool has_map) {
  check_same_device(op, "grad_output", grad_output, input);
  check_dtype(op, "grad_output", grad_output, real_dtype(input.scalar_type()));
  STD_TORCH_CHECK(has_map ? same_shape(grad_output, input) : grad_output.dim() == 0, op,
                  ": grad_output must have the shape of the loss, not ", shape_text(grad_output));
}

// A float64 scalar, which forward made.
inline void check_scalar(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  check_same_device(op, name, tensor, input);
  check_dtype(op, name, tensor, ScalarType::Double);
  STD_TORCH_CHECK(tensor.dim() == 0, op, ": ", name, " must be a scalar, not of shape ", shape_text(tensor));
}

}  // namespace usreg
