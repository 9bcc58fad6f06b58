// The numbers of a step of Adam, for CPUs and GPUs. No header of torch.
//
//   exp_avg    = beta1 exp_avg    + (1 - beta1) gradient
//   exp_avg_sq = beta2 exp_avg_sq + (1 - beta2) gradient^2
//   direction  = exp_avg / (sqrt(exp_avg_sq / (1 - beta2^step)) + eps)
//   update     = scale * direction
//
// The plain step has scale = -lr / (1 - beta1^step). The scaled one has -lr / (length of the sample's longest vector of
// `direction`), in which the factor of exp_avg cancels.
#pragma once

#include <cmath>

#include "common/half_bits.h"

namespace usreg {

template <class R>
struct AdamRates {
  R beta1, rest1;  // rest: 1 - beta, rounded once
  R beta2, rest2;
  R eps;
};

template <class R>
AdamRates<R> adam_rates(double beta1, double beta2, double eps) {
  return {static_cast<R>(beta1), static_cast<R>(1 - beta1), static_cast<R>(beta2), static_cast<R>(1 - beta2),
          static_cast<R>(eps)};
}

// What follows from the number of steps so far, in float64: 1 - beta2^step has few digits else.
template <class R>
struct AdamCorrections {
  R root;         // 1 / sqrt(1 - beta2^step), a factor of sqrt(exp_avg_sq)
  R plain_scale;  // -lr / (1 - beta1^step)
};

template <class R>
USREG_EVERYWHERE inline AdamCorrections<R> adam_corrections(double lr, double beta1, double beta2, double step) {
  return {static_cast<R>(1 / sqrt(1 - pow(beta2, step))), static_cast<R>(-lr / (1 - pow(beta1, step)))};
}

// The scale of a sample from the squared length of its longest direction: 0 where nothing moves, NaN where that is NaN
// or infinite.
template <class R>
USREG_EVERYWHERE inline R adam_longest_scale(double lr, R square) {
  if (square == 0) return 0;
  return square - square == 0 ? static_cast<R>(-lr / sqrt(static_cast<double>(square))) : static_cast<R>(NAN);
}

}  // namespace usreg
