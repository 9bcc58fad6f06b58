// The launchers of field_losses.cuh, for one kind of loss each.
#pragma once

#include <vector>

#include "common/field_loss_call.h"
#include "cuda/field_losses.cuh"
#include "cuda/torch_support.h"

namespace usreg {
namespace cuda {

// Calls function(integral constant of the first axis) for a field of 1, 2 or 3 spatial dims.
template <class Function>
void dispatch_first_axis(int first_axis, const Function& function) {
  switch (first_axis) {
    case 0:
      return function(std::integral_constant<int, 0>());
    case 1:
      return function(std::integral_constant<int, 1>());
    default:
      return function(std::integral_constant<int, 2>());
  }
}

// divide_by: the weights are divided by it.
template <class T>
FieldLoss<T> make_field_loss(const Tensor& field, const FieldLossCall& call, double divide_by) {
  FieldLoss<T> loss = {data<T>(field), call.shape.components, call.shape.channels, {}, {}};
  std::copy_n(call.shape.size, 3, loss.size);
  STD_TORCH_CHECK(call.weights.size() <= sizeof(loss.weights) / sizeof(*loss.weights), call.op,
                  ": a field has as many components as spatial axes, at most 3, not ", call.shape.channels);
  for (size_t i = 0; i < call.weights.size(); ++i) loss.weights[i] = static_cast<Real<T>>(call.weights[i] / divide_by);
  return loss;
}

// Returns the loss: a scalar for mean and sum, else the map; float64 for float64 fields, else float32.
template <FieldLossKind kKind, Penalty kPenalty>
Tensor field_loss_forward(const Tensor& dvf, const FieldLossCall& call) {
  const Tensor field = torch::stable::contiguous(dvf);
  const bool keep_map = call.reduction == Reduction::kNone;
  const ScalarType real = real_dtype(field.scalar_type());
  Tensor output = torch::stable::new_empty(field, call.sizes(dvf), real);
  if (field.numel() == 0) {
    fill_empty_loss(output, call.reduction);
    return output;
  }
  TensorLaunches launches(field);
  dispatch_elements(field.scalar_type(), call.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const FieldLoss<T> loss = make_field_loss<T>(field, call, 1);
    const Tensor partials = torch::stable::new_empty(field, {keep_map ? 0 : loss.blocks()}, real);
    R* const result = mutable_data<R>(output);
    dispatch_first_axis(call.shape.first_axis, [&](auto axis) {
      launch_field_loss<kKind, kPenalty, decltype(axis)::value>(
          launches, loss, call.divisor, keep_map ? result : nullptr, mutable_data<R>(partials), result);
    });
  });
  launches.check(call.op);
  return output;
}

// Returns the gradient, of the field's dtype and shape.
template <FieldLossKind kKind, Penalty kPenalty>
Tensor field_loss_backward(const Tensor& grad_output, const Tensor& dvf, const FieldLossCall& call) {
  call.check_grad_output(grad_output, dvf);
  const Tensor field = torch::stable::contiguous(dvf), grad = torch::stable::contiguous(grad_output);
  Tensor gradient = torch::stable::new_empty(field, field.sizes());
  if (field.numel() == 0) return gradient;
  TensorLaunches launches(field);
  dispatch_elements(field.scalar_type(), call.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const FieldLoss<T> loss = make_field_loss<T>(field, call, call.divisor);
    dispatch_first_axis(call.shape.first_axis, [&](auto axis) {
      launch_field_gradient<kKind, kPenalty, decltype(axis)::value>(
          launches, loss, data<Real<T>>(grad), call.reduction == Reduction::kNone, mutable_data<T>(gradient));
    });
  });
  launches.check(call.op);
  return gradient;
}

}  // namespace cuda
}  // namespace usreg
