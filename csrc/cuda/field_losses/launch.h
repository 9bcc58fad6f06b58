// The launchers of field_losses.cuh, for one loss each.
#pragma once

#include <vector>

#include "common/field_loss_call.h"
#include "cuda/field_losses/field_losses.cuh"
#include "cuda/support/torch_support.h"

namespace usreg {
namespace cuda {

// The place of the difference along two axes in a volume's list; for one axis, the place of its first difference.
inline int place_of_difference(bool of_pairs, int axis, int other) {
  return of_pairs ? axis * (5 - axis) / 2 + other : axis;
}

// The field as the march sees it: a volume whose axis y is not there for two spatial dims, nor z for one.
// divide_by: the weights are divided by it.
template <class T>
FieldLoss<T> make_field_loss(const Tensor& field, const FieldLossCall& call, double divide_by) {
  const FieldShape& shape = call.shape;
  const int dims = 3 - shape.first_axis;
  const bool of_pairs = call.kind == FieldLossKind::kBendingEnergy;
  STD_TORCH_CHECK(shape.channels <= 3, call.op, ": a field has as many components as spatial axes, at most 3, not ",
                  shape.channels);
  FieldLoss<T> loss = {};
  loss.field = data<T>(field);
  loss.components = shape.components;
  loss.channels = shape.channels;
  loss.has_z = dims >= 2;
  loss.has_y = dims == 3;
  loss.size[0] = loss.has_z ? shape.size[shape.first_axis] : 1;
  loss.size[1] = loss.has_y ? shape.size[1] : 1;
  loss.size[2] = shape.size[2];
  STD_TORCH_CHECK(!loss.has_y || loss.plane() <= kMostFieldPlane, call.op, ": a plane of a volume has at most ",
                  kMostFieldPlane, " voxels, not ", loss.size[1], " x ", loss.size[2]);
  cut_into_blocks(loss);

  const int axes[3][3] = {{2}, {0, 2}, {0, 1, 2}};  // of the volume, by dims
  const int per_channel = of_pairs ? 6 : 3;
  auto weight = call.weights.begin();
  for (int64_t channel = 0; channel < shape.channels; ++channel) {
    for (int i = 0; i < dims; ++i) {
      for (int j = i; j < (of_pairs ? dims : i + 1); ++j) {
        const int place = place_of_difference(of_pairs, axes[dims - 1][i], axes[dims - 1][j]);
        loss.weights[channel * per_channel + place] = static_cast<Real<T>>(*weight++ / divide_by);
      }
    }
  }
  return loss;
}

// Returns the loss: a scalar for mean and sum, else the map; float64 for float64 fields, else float32.
template <template <class> class Loss>
Tensor field_loss_forward(const Tensor& dvf, const FieldLossCall& call) {
  const Tensor field = as_contiguous(dvf);
  const bool keep_map = call.reduction == Reduction::kNone;
  const ScalarType real = real_dtype(field.scalar_type());
  Tensor output = torch::stable::new_empty(field, call.sizes(dvf), real);
  if (field.numel() == 0) {
    torch::stable::fill_(output, 0 / call.divisor);
    return output;
  }
  TensorLaunches launches(field);
  dispatch_elements(field.scalar_type(), call.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const FieldLoss<T> loss = make_field_loss<T>(field, call, 1);
    const Tensor partials = torch::stable::new_empty(field, {keep_map ? 0 : loss.blocks()}, real);
    R* const result = mutable_data<R>(output);
    launch_field_loss<Loss<T>>(launches, loss, call.divisor, keep_map ? result : nullptr, mutable_data<R>(partials),
                               result);
  });
  launches.check(call.op);
  return output;
}

// Returns the gradient, of the field's dtype and shape.
template <template <bool, class> class Gradient>
Tensor field_loss_backward(const Tensor& grad_output, const Tensor& dvf, const FieldLossCall& call) {
  call.check_grad_output(grad_output, dvf);
  const Tensor field = as_contiguous(dvf), grad = as_contiguous(grad_output);
  Tensor gradient = torch::stable::new_empty(field, field.sizes());
  if (field.numel() == 0) return gradient;
  TensorLaunches launches(field);
  dispatch_elements(field.scalar_type(), call.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const FieldLoss<T> loss = make_field_loss<T>(field, call, call.divisor);
    if (call.reduction == Reduction::kNone) {
      launch_field_gradient<Gradient<true, T>>(launches, loss, data<Real<T>>(grad), mutable_data<T>(gradient));
    } else {
      launch_field_gradient<Gradient<false, T>>(launches, loss, data<Real<T>>(grad), mutable_data<T>(gradient));
    }
  });
  launches.check(call.op);
  return gradient;
}

}  // namespace cuda
}  // namespace usreg
