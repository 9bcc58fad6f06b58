// The Jacobian determinant of x + ddf(x), and the folding loss made of it, on CPUs; jacobian.h explains the kernels.

#include "cpu/jacobian/jacobian.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/checks.h"
#include "common/dtypes.h"
#include "common/jacobian_call.h"
#include "common/tensors.h"
#include "cpu/support/capability.h"
#include "cpu/support/memory.h"
#include "cpu/support/parallel.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

#define USREG_KERNEL_BODY "cpu/jacobian/kernel.inc"
#include "cpu/support/for_each_isa.inc"

namespace usreg {
namespace jacobian {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The blocks of a batch, whatever the number of threads: bands of rows that stay in the second-level cache, and chunks
// of planes, shorter ones where there would be too few blocks.
class Blocks {
 public:
  explicit Blocks(const JacobianCall& call) : batch_(call.voxels() == 0 ? 0 : call.batch) {
    constexpr int64_t kVoxels = 4096, kFewestRows = 4, kMostRows = 32;
    constexpr int64_t kFewestPlanes = 8, kMostPlanes = 32, kEnough = 32;
    if (batch_ == 0) return;
    std::copy_n(call.size, 3, size_);
    const int64_t rows = std::clamp(kVoxels / size_[2], kFewestRows, kMostRows);
    bands_ = ceil_div(size_[1], rows);
    const int64_t wanted = ceil_div(kEnough, batch_ * bands_);
    chunks_ = std::max(ceil_div(size_[0], kMostPlanes), std::min(wanted, ceil_div(size_[0], kFewestPlanes)));
  }

  int64_t count() const { return batch_ * bands_ * chunks_; }
  int64_t most_rows() const { return ceil_div(size_[1], bands_); }

  // Calls function(index, block, scratch) for each block, from several threads; scratch: so many rows of R.
  template <class R, class Function>
  void parallel_for(int64_t scratch_rows, const Function& function) const {
    usreg::parallel_for(count(), 1, [&](int64_t first, int64_t last) {
      std::vector<R> scratch(scratch_rows * row_stride(size_[2]));
      for (int64_t index = first; index < last; ++index) function(index, at(index), scratch.data());
    });
  }

 private:
  Block at(int64_t index) const {
    const int64_t band = index % bands_, chunk = index / bands_ % chunks_;
    return {index / bands_ / chunks_, size_[0] * chunk / chunks_, size_[0] * (chunk + 1) / chunks_,
            size_[1] * band / bands_, size_[1] * (band + 1) / bands_};
  }

  int64_t batch_, size_[3] = {1, 1, 1}, bands_ = 1, chunks_ = 1;
};

// The field in the type that kernels compute with.
Tensor as_real(const Tensor& ddf) {
  const ScalarType real = real_dtype(ddf.scalar_type());
  return as_contiguous(ddf.scalar_type() == real ? ddf : torch::stable::to(ddf, real));
}

template <class R>
Problem<R> make_problem(const JacobianCall& call, const Tensor& field, const std::vector<R>& zeros) {
  Problem<R> problem = {};
  problem.dims = call.dims;
  for (int axis = 0; axis < 3; ++axis) {
    problem.size[axis] = call.size[axis];
    problem.scale[axis] = static_cast<R>(call.scale[axis]);
  }
  problem.field = static_cast<const R*>(field.const_data_ptr());
  problem.zeros = zeros.data() + kPad;
  problem.folds = call.folds;
  problem.margin = static_cast<R>(call.margin);
  return problem;
}

// Returns the map, or for the loss what it is reduced to; float64 for float64 fields, else float32.
Tensor forward(const Tensor& ddf, const JacobianCall& call) {
  check_on_cpu(call.op, "ddf", ddf);
  const Tensor field = as_real(ddf);
  Tensor output = new_output(field, call.sizes(), field.scalar_type());
  dispatch_floating(field.scalar_type(), call.op, [&](auto tag) {
    using R = Real<typename decltype(tag)::type>;
    const std::vector<R> zeros(row_stride(call.size[2]));
    Problem<R> problem = make_problem<R>(call, field, zeros);
    auto* const result = static_cast<R*>(output.mutable_data_ptr());
    if (call.keeps_map()) problem.map = result;
    const auto kernel = USREG_SELECT(jacobian_values<R>);
    const Blocks blocks(call);
    std::vector<double> sums(blocks.count());
    blocks.parallel_for<R>(
        1, [&](int64_t index, const Block& block, R* row) { kernel(problem, block, row, &sums[index]); });
    if (call.keeps_map()) return;
    double total = 0;
    for (double sum : sums) total += sum;
    *result = static_cast<R>(total / call.divisor);
  });
  return output;
}

// Returns the gradient, of the field's dtype and shape. grad_output: of the output's dtype and shape; it is multiplied
// in before rounding to the field's dtype, since a mean over many voxels has gradients that float16 cannot hold.
Tensor backward(const Tensor& grad_output, const Tensor& ddf, const JacobianCall& call) {
  check_on_cpu(call.op, "ddf", ddf);
  call.check_grad_output(grad_output, ddf);
  const Tensor field = as_real(ddf), grad = as_contiguous(grad_output);
  Tensor gradient = new_output(field, ddf.sizes(), ddf.scalar_type());
  if (ddf.numel() == 0) return gradient;
  dispatch_floating(ddf.scalar_type(), call.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const std::vector<R> zeros(row_stride(call.size[2]));
    Problem<R> problem = make_problem<R>(call, field, zeros);
    const auto* const grads = static_cast<const R*>(grad.const_data_ptr());
    if (call.keeps_map()) {
      problem.grad_map = grads;
    } else {
      problem.grad = static_cast<R>(static_cast<double>(*grads) / call.divisor);
    }
    problem.gradient = gradient.mutable_data_ptr();
    const auto kernel = USREG_SELECT(jacobian_gradient<T, R>);
    const Blocks blocks(call);
    blocks.parallel_for<R>(gradient_rows(call.dims, blocks.most_rows()),
                           [&](int64_t, const Block& block, R* rows) { kernel(problem, block, rows); });
  });
  return gradient;
}

constexpr const char* kDeterminant = "jacobian_determinant";
constexpr const char* kFolding = "folding";

Tensor determinant_forward(const Tensor& ddf, std::vector<double> scales) {
  return forward(ddf, JacobianCall(kDeterminant, ddf, scales));
}

Tensor determinant_backward(const Tensor& grad_output, const Tensor& ddf, std::vector<double> scales) {
  return backward(grad_output, ddf, JacobianCall(kDeterminant, ddf, scales));
}

Tensor folding_forward(const Tensor& ddf, std::vector<double> scales, double margin, int64_t reduction) {
  return forward(ddf, JacobianCall(kFolding, ddf, scales, margin, reduction));
}

Tensor folding_backward(const Tensor& grad_output, const Tensor& ddf, std::vector<double> scales, double margin,
                        int64_t reduction) {
  return backward(grad_output, ddf, JacobianCall(kFolding, ddf, scales, margin, reduction));
}

}  // namespace
}  // namespace jacobian
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/jacobian_determinant and folding).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("jacobian_determinant_native_forward", TORCH_BOX(&usreg::jacobian::determinant_forward));
  m.impl("jacobian_determinant_native_backward", TORCH_BOX(&usreg::jacobian::determinant_backward));
  m.impl("folding_native_forward", TORCH_BOX(&usreg::jacobian::folding_forward));
  m.impl("folding_native_backward", TORCH_BOX(&usreg::jacobian::folding_backward));
}
