// Warp of images by a field, an affine or both, and composition of fields, which is a warp with an addition. The
// kernels are explained in warp.h.

#include "cpu/warp/warp.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/warp_call.h"
#include "cpu/support/capability.h"
#include "cpu/support/memory.h"
#include "cpu/support/parallel.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

#define USREG_KERNEL_BODY "cpu/warp/kernel.inc"
#include "cpu/support/for_each_isa.inc"

#define WARP_SELECT(...) USREG_SELECT_FOR(::usreg::capability_for_single_loads(), __VA_ARGS__)

namespace usreg {
namespace warp {
namespace {

constexpr int64_t kTilesPerTask = 32;  // fewer are not worth waking a thread for
// Of the image's planes that share a task of its gradient. Tiles that look at two tasks are read twice, and so are all
// reaches by each task.
constexpr int64_t kPlanesPerTask = 8, kMostTasks = 64;

Tensor as_real(const Tensor& tensor) {
  const ScalarType real = real_dtype(tensor.scalar_type());
  return tensor.scalar_type() == real ? tensor : torch::stable::to(tensor, real);
}

// A call, with the image in the type that kernels compute with.
struct Arguments : WarpCall {
  explicit Arguments(const WarpCall& call) : WarpCall(call) { image = as_real(image); }

  template <class R>
  Problem<R> problem(Interpolation interpolation, Padding padding) const {
    Problem<R> problem = {};
    problem.interpolation = interpolation;
    problem.padding = padding;
    problem.dims = dims;
    problem.batch = image.size(0);
    problem.channels = image.size(1);
    for (int axis = 0; axis < 3; ++axis) {
      problem.image_size[axis] = image_size(axis);
      problem.output_size[axis] = output_size(axis);
    }
    problem.image = static_cast<const R*>(image.const_data_ptr());
    problem.field_dtype = dtype;
    if (field.has_value()) problem.field = field->const_data_ptr();
    if (affine.has_value()) problem.affine = static_cast<const R*>(affine->const_data_ptr());
    return problem;
  }
};

// Calls function(TypeTag<R>()) with the type that an image computes in.
template <class Function>
void dispatch_real(const Tensor& image, const Function& function) {
  if (image.scalar_type() == ScalarType::Double) return function(TypeTag<double>());
  function(TypeTag<float>());
}

// Calls kernel(problem, first, last) for all tiles, from several threads.
template <class R, class Kernel>
void for_tiles(const Problem<R>& problem, const Kernel& kernel) {
  parallel_for(problem.tiles(), kTilesPerTask, [&](int64_t first, int64_t last) { kernel(problem, first, last); });
}

Tensor values(const Arguments& arguments, Interpolation interpolation, Padding padding, bool composes) {
  check_on_cpu(arguments.op, "image", arguments.image);
  Tensor output = new_output(arguments.image, arguments.output_shape(), arguments.image.scalar_type());
  dispatch_real(arguments.image, [&](auto tag) {
    using R = typename decltype(tag)::type;
    Problem<R> problem = arguments.problem<R>(interpolation, padding);
    problem.composes = composes;
    problem.output = static_cast<R*>(output.mutable_data_ptr());
    for_tiles(problem, WARP_SELECT(warp_forward<R>));
  });
  return output;
}

// The gradient to the image: planes of it are tasks.
template <class R>
void scatter(const Problem<R>& problem) {
  const int64_t planes = problem.image_size[problem.first_axis()];
  std::vector<Reach> reaches(problem.tiles());
  const auto reach = WARP_SELECT(warp_reaches<R>);
  for_tiles(problem,
            [&](const Problem<R>& same, int64_t first, int64_t last) { reach(same, first, last, reaches.data()); });
  const int64_t parts = std::min((planes + kPlanesPerTask - 1) / kPlanesPerTask, kMostTasks);
  const auto kernel = WARP_SELECT(warp_scatter<R>);
  parallel_for(problem.batch * parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t part = task % parts;
      kernel(problem, task / parts, planes * part / parts, planes * (part + 1) / parts, reaches.data());
    }
  });
}

// The gradient to the affine (batch, dims, dims + 1) from the sums of the tiles, added in their order.
template <class R>
void add_affine_sums(const Problem<R>& problem, R* gradient) {
  const int64_t numbers = problem.dims * (problem.dims + 1), tiles = problem.tiles_per_image();
  for (int64_t image = 0; image < problem.batch; ++image) {
    for (int64_t k = 0; k < numbers; ++k) {
      double total = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) total += problem.affine_sums[(image * tiles + tile) * numbers + k];
      *gradient++ = static_cast<R>(total);
    }
  }
}

using Gradients = std::tuple<std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>>;

struct Wanted {
  bool image, field, affine;
  bool in_one = false;  // image and field are one tensor: their gradients are added up in the field's
};

Gradients gradients(const Tensor& grad_output, const Arguments& arguments, Interpolation interpolation, Padding padding,
                    bool composes, Wanted wanted) {
  check_on_cpu(arguments.op, "image", arguments.image);
  arguments.check_grad_output(grad_output);
  const Tensor grad = as_contiguous(grad_output);
  wanted.field &= arguments.field.has_value();
  wanted.affine &= arguments.affine.has_value();
  const ScalarType real = arguments.image.scalar_type();
  std::optional<Tensor> to_image = new_gradient(arguments.image, wanted.image && !wanted.in_one, real);
  std::optional<Tensor> to_field, to_affine;
  if (wanted.field) to_field = new_gradient(*arguments.field, true, arguments.dtype);
  if (wanted.affine) to_affine = new_gradient(*arguments.affine, true, real);
  dispatch_real(arguments.image, [&](auto tag) {
    using R = typename decltype(tag)::type;
    Problem<R> problem = arguments.problem<R>(interpolation, padding);
    problem.composes = composes;
    problem.grad_output = static_cast<const R*>(grad.const_data_ptr());
    std::vector<double> affine_sums(wanted.affine ? problem.tiles() * problem.dims * (problem.dims + 1) : 0);
    if (wanted.field) problem.field_grad = to_field->mutable_data_ptr();
    if (wanted.affine) problem.affine_sums = affine_sums.data();
    if (wanted.field || wanted.affine) for_tiles(problem, WARP_SELECT(warp_slopes<R>));
    if (wanted.affine) add_affine_sums(problem, static_cast<R*>(to_affine->mutable_data_ptr()));
    if (wanted.image) {
      problem.image_grad = static_cast<R*>((wanted.in_one ? to_field : to_image)->mutable_data_ptr());
      problem.adds_image_grad = wanted.in_one;
      scatter(problem);
    }
  });
  if (to_image.has_value() && real != arguments.dtype) to_image = torch::stable::to(*to_image, arguments.dtype);
  return {to_image, to_field, to_affine};
}

constexpr const char* kWarp = "warp";
constexpr const char* kCompose = "compose_ddf";

Tensor warp_values(const Tensor& image, const std::optional<Tensor>& ddf, const std::optional<Tensor>& affine,
                   std::vector<int64_t> size, int64_t mode, int64_t padding_mode) {
  return values(Arguments(WarpCall(kWarp, image, ddf, affine, std::move(size))), check_interpolation(kWarp, mode),
                check_padding(kWarp, padding_mode), false);
}

Gradients warp_gradients(const Tensor& grad_output, const Tensor& image, const std::optional<Tensor>& ddf,
                         const std::optional<Tensor>& affine, std::vector<int64_t> size, int64_t mode,
                         int64_t padding_mode, bool image_grad, bool ddf_grad, bool affine_grad) {
  return gradients(grad_output, Arguments(WarpCall(kWarp, image, ddf, affine, std::move(size))),
                   check_interpolation(kWarp, mode), check_padding(kWarp, padding_mode), false,
                   {image_grad, ddf_grad, affine_grad});
}

Tensor compose_values(const Tensor& outer, const Tensor& inner, int64_t padding_mode) {
  return values(Arguments(compose_call(outer, inner)), Interpolation::kBilinear, check_padding(kCompose, padding_mode),
                true);
}

std::tuple<std::optional<Tensor>, std::optional<Tensor>> compose_gradients(const Tensor& grad_output,
                                                                           const Tensor& outer, const Tensor& inner,
                                                                           int64_t padding_mode, bool outer_grad,
                                                                           bool inner_grad) {
  const Gradients found = gradients(grad_output, Arguments(compose_call(outer, inner)), Interpolation::kBilinear,
                                    check_padding(kCompose, padding_mode), true, {outer_grad, inner_grad, false});
  return {std::get<0>(found), std::get<1>(found)};
}

// The gradient of a field composed with itself.
Tensor square_gradient(const Tensor& grad_output, const Tensor& ddf, int64_t padding_mode) {
  constexpr const char* kSquare = "square_ddf";
  check_dtype(kSquare, "ddf", ddf, real_dtype(ddf.scalar_type()));
  const Gradients found = gradients(grad_output, Arguments(compose_call(ddf, ddf)), Interpolation::kBilinear,
                                    check_padding(kSquare, padding_mode), true, {true, true, false, true});
  return *std::get<1>(found);
}

}  // namespace
}  // namespace warp
}  // namespace usreg

// The schemas stand in Python (usreg_kernels/ops/<op>/native.py, of warp, compose_ddf and integrate_velocity).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("warp_native_forward", TORCH_BOX(&usreg::warp::warp_values));
  m.impl("warp_native_backward", TORCH_BOX(&usreg::warp::warp_gradients));
  m.impl("compose_ddf_native_forward", TORCH_BOX(&usreg::warp::compose_values));
  m.impl("compose_ddf_native_backward", TORCH_BOX(&usreg::warp::compose_gradients));
  m.impl("square_ddf_native_backward", TORCH_BOX(&usreg::warp::square_gradient));
}
