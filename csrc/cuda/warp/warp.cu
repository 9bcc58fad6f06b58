// Warp of images by a field, an affine or both, and composition of fields, on GPUs: the launchers.

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/warp_call.h"
#include "common/warp_codes.h"
#include "cuda/support/torch_support.h"
#include "cuda/warp/gather.cuh"
#include "cuda/warp/scatter.cuh"

namespace usreg {
namespace cuda {
namespace {

// How a call reads its image.
struct Modes {
  Interpolation interpolation;
  Padding padding;
  bool composes;
};

template <class T>
WarpProblem<T> make_problem(const WarpCall& call, const Modes& modes) {
  WarpProblem<T> problem = {};
  problem.image = data<T>(call.image);
  problem.field = data<T>(call.field);
  problem.affine = data<Real<T>>(call.affine);
  problem.batch = call.image.size(0);
  problem.channels = call.image.size(1);
  problem.image_voxels = problem.voxels = 1;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t longest = std::max(call.image_size(axis), call.output_size(axis));
    STD_TORCH_CHECK(longest < kMostAlongAxis, call.op, ": an axis has less than 2^30 voxels, not ", longest);
    problem.size[axis] = static_cast<int>(call.image_size(axis));
    problem.inverse_period[axis] = 1 / static_cast<Real<T>>(std::max(1, 2 * (problem.size[axis] - 1)));
    problem.output_size[axis] = call.output_size(axis);
    problem.image_voxels *= problem.size[axis];
    problem.voxels *= problem.output_size[axis];
  }
  problem.width = Divisor::of(static_cast<uint32_t>(problem.output_size[2]));
  problem.height = Divisor::of(static_cast<uint32_t>(problem.output_size[1]));
  problem.nearest = modes.interpolation == Interpolation::kNearest;
  problem.reflects = modes.padding == Padding::kReflection;
  problem.composes = modes.composes;
  return problem;
}

// The output in slabs of whole rows, which 32 bits count.
template <class T>
std::vector<WarpProblem<T>> cut_into_slabs(WarpProblem<T> problem, int turns) {
  const int64_t width = problem.output_size[2], height = problem.output_size[1], rows = problem.voxels / width;
  const int64_t rows_at_once = std::max<int64_t>(1, kWarpSlab / width);
  std::vector<WarpProblem<T>> slabs;
  for (int64_t row = 0; row < rows; row += rows_at_once) {
    problem.first = row * width;
    problem.first_z = static_cast<int>(row / height);
    problem.first_y = static_cast<int>(row % height);
    problem.count = static_cast<uint32_t>(std::min(rows_at_once, rows - row) * width);
    problem.turns = turns;
    problem.pieces = Divisor::of(ceil_div<uint32_t>(problem.count, kWarpThreads * turns));
    slabs.push_back(problem);
  }
  return slabs;
}

template <int kDims, bool kZeros, class T>
struct Kernels {
  static constexpr auto values = warp_values<kDims, kZeros, T>;
  static constexpr auto slopes = warp_slopes<kDims, kZeros, false, T>;
  static constexpr auto slopes_and_sums = warp_slopes<kDims, kZeros, true, T>;
  static constexpr auto scatter = warp_scatter<kDims, kZeros, T>;
};

// Calls function(TypeTag<Kernels<...>>()) with the kernels of a call.
template <class T, class Function>
void dispatch_kernels(int dims, Padding padding, const Function& function) {
  const auto pick = [&](auto zeros) {
    constexpr bool kZeros = decltype(zeros)::value;
    if (dims == 1) return function(TypeTag<Kernels<1, kZeros, T>>());
    if (dims == 2) return function(TypeTag<Kernels<2, kZeros, T>>());
    function(TypeTag<Kernels<3, kZeros, T>>());
  };
  if (padding == Padding::kZeros) return pick(std::true_type());
  pick(std::false_type());
}

Tensor values(const WarpCall& call, const Modes& modes) {
  const ScalarType real = real_dtype(call.dtype);
  Tensor output = torch::stable::new_empty(call.image, call.output_shape(), real);
  if (output.numel() == 0) return output;
  TensorLaunches launches(call.image);
  dispatch_elements(call.dtype, call.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const WarpProblem<T> problem = make_problem<T>(call, modes);
    dispatch_kernels<T>(call.dims, modes.padding, [&](auto kernels) {
      for (const WarpProblem<T>& slab : cut_into_slabs(problem, 1)) {
        launches.run(decltype(kernels)::type::values, slab.blocks(), kWarpThreads, 0, slab,
                     mutable_data<Real<T>>(output));
      }
    });
  });
  launches.check(call.op);
  return output;
}

template <class T>
void launch_slopes(TensorLaunches& launches, const WarpCall& call, const Modes& modes, const Tensor& grad,
                   const std::optional<Tensor>& to_field, const std::optional<Tensor>& to_affine) {
  using R = Real<T>;
  const auto slabs = cut_into_slabs(make_problem<T>(call, modes), to_affine.has_value() ? kWarpTurns : 1);
  T* const field_grad = mutable_data<T>(to_field);
  dispatch_kernels<T>(call.dims, modes.padding, [&](auto kernels) {
    using Picked = typename decltype(kernels)::type;
    if (!to_affine.has_value()) {
      for (const WarpProblem<T>& slab : slabs) {
        launches.run(Picked::slopes, slab.blocks(), kWarpThreads, 0, slab, data<R>(grad), field_grad, nullptr, 0, 0);
      }
      return;
    }
    int64_t pieces = 0, offset = 0;
    for (const WarpProblem<T>& slab : slabs) pieces += slab.pieces.value;
    const int64_t elements = to_affine->numel();
    const Tensor partials = torch::stable::new_empty(call.image, {elements, pieces}, ScalarType::Double);
    for (const WarpProblem<T>& slab : slabs) {
      launches.run(Picked::slopes_and_sums, slab.blocks(), kWarpThreads, block_sum_bytes<double>(kWarpThreads), slab,
                   data<R>(grad), field_grad, mutable_data<double>(partials), pieces, offset);
      offset += slab.pieces.value;
    }
    launches.run(add_up_rows<R>, elements, kFinishThreads, block_sum_bytes<double>(kFinishThreads),
                 data<double>(partials), pieces, mutable_data<R>(*to_affine));
  });
}

int bits_of(int64_t count) {
  int bits = 0;
  while (int64_t{1} << bits < count) ++bits;
  return bits;
}

template <class T>
void launch_scatter(TensorLaunches& launches, const WarpCall& call, const Modes& modes, const Tensor& grad,
                    const Tensor& to_image) {
  using R = Real<T>;
  const WarpProblem<T> problem = make_problem<T>(call, modes);
  const int64_t count = to_image.numel();
  const Tensor memory = torch::stable::new_zeros(call.image, {kWords<R> * count + 2}, ScalarType::Long);
  Sum* const sums = mutable_data<Sum>(memory);
  Sum* const state = sums + kWords<R> * count;
  const int count_bits = bits_of(problem.voxels);
  launches.run(warp_measure<R>, ceil_div<int64_t>(grad.numel(), kMeasureThreads * kMeasuresAtOnce), kMeasureThreads, 0,
               data<R>(grad), grad.numel(), state);
  dispatch_kernels<T>(call.dims, modes.padding, [&](auto kernels) {
    for (const WarpProblem<T>& slab : cut_into_slabs(problem, 1)) {
      launches.run(decltype(kernels)::type::scatter, slab.blocks(), kWarpThreads, 0, slab, data<R>(grad), count_bits,
                   sums, state);
    }
  });
  launches.run(warp_convert<T>, ceil_div<int64_t>(count, kMeasureThreads), kMeasureThreads, 0, sums, state, count_bits,
               count, mutable_data<T>(to_image));
}

void fill_with_zeros(std::optional<Tensor>& tensor) {
  if (tensor.has_value()) torch::stable::fill_(*tensor, 0);
}

using Gradients = std::tuple<std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>>;

// Returns the gradients to image, field and affine, of their dtype and shape; none where not asked for.
Gradients gradients(const Tensor& grad_output, const WarpCall& call, const Modes& modes, bool image_grad,
                    bool field_grad, bool affine_grad) {
  call.check_grad_output(grad_output);
  const Tensor grad = as_contiguous(grad_output);
  std::optional<Tensor> to_image = new_gradient(call.image, image_grad), to_field, to_affine;
  if (call.field.has_value()) to_field = new_gradient(*call.field, field_grad);
  if (call.affine.has_value()) to_affine = new_gradient(*call.affine, affine_grad);
  int64_t voxels = call.image.size(0);
  for (int axis = 0; axis < 3; ++axis) voxels *= call.output_size(axis);
  const bool has_slopes = voxels > 0 && modes.interpolation == Interpolation::kBilinear;
  if (!has_slopes) fill_with_zeros(to_field);
  if (!has_slopes) fill_with_zeros(to_affine);
  if (grad.numel() == 0) fill_with_zeros(to_image);
  TensorLaunches launches(call.image);
  dispatch_elements(call.dtype, call.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (has_slopes && (to_field.has_value() || to_affine.has_value())) {
      launch_slopes<T>(launches, call, modes, grad, to_field, to_affine);
    }
    if (to_image.has_value() && grad.numel() > 0) launch_scatter<T>(launches, call, modes, grad, *to_image);
  });
  launches.check(call.op);
  return {to_image, to_field, to_affine};
}

constexpr const char* kWarpOp = "warp";
constexpr const char* kComposeOp = "compose_ddf";

Modes warp_modes(int64_t mode, int64_t padding_mode) {
  return {check_interpolation(kWarpOp, mode), check_padding(kWarpOp, padding_mode), false};
}

Modes compose_modes(int64_t padding_mode) {
  return {Interpolation::kBilinear, check_padding(kComposeOp, padding_mode), true};
}

Tensor warp_forward(const Tensor& image, const std::optional<Tensor>& ddf, const std::optional<Tensor>& affine,
                    std::vector<int64_t> size, int64_t mode, int64_t padding_mode) {
  return values(WarpCall(kWarpOp, image, ddf, affine, std::move(size)), warp_modes(mode, padding_mode));
}

Gradients warp_backward(const Tensor& grad_output, const Tensor& image, const std::optional<Tensor>& ddf,
                        const std::optional<Tensor>& affine, std::vector<int64_t> size, int64_t mode,
                        int64_t padding_mode, bool image_grad, bool ddf_grad, bool affine_grad) {
  return gradients(grad_output, WarpCall(kWarpOp, image, ddf, affine, std::move(size)), warp_modes(mode, padding_mode),
                   image_grad, ddf_grad, affine_grad);
}

Tensor compose_forward(const Tensor& outer, const Tensor& inner, int64_t padding_mode) {
  return values(compose_call(outer, inner), compose_modes(padding_mode));
}

std::tuple<std::optional<Tensor>, std::optional<Tensor>> compose_backward(const Tensor& grad_output,
                                                                          const Tensor& outer, const Tensor& inner,
                                                                          int64_t padding_mode, bool outer_grad,
                                                                          bool inner_grad) {
  const Gradients found =
      gradients(grad_output, compose_call(outer, inner), compose_modes(padding_mode), outer_grad, inner_grad, false);
  return {std::get<0>(found), std::get<1>(found)};
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/warp/native.py and compose_ddf/native.py).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("warp_native_forward", TORCH_BOX(&usreg::cuda::warp_forward));
  m.impl("warp_native_backward", TORCH_BOX(&usreg::cuda::warp_backward));
  m.impl("compose_ddf_native_forward", TORCH_BOX(&usreg::cuda::compose_forward));
  m.impl("compose_ddf_native_backward", TORCH_BOX(&usreg::cuda::compose_backward));
}
