// The arguments that the forward and the backward op of local normalised cross-correlation share, checked.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/reduction.h"
#include "common/tensors.h"
#include "cpu/lncc/lncc.h"

namespace usreg {
namespace lncc {

constexpr const char* kOp = "lncc";

// The weights of a window along one axis, in the forms that kernels read.
class WindowWeights {
 public:
  explicit WindowWeights(std::vector<double> weights) : weights_(std::move(weights)) {
    STD_TORCH_CHECK(weights_.size() % 2 == 1, kOp, ": a window must have an odd size along each axis, not ",
                    weights_.size());
    for (double weight : weights_) {
      broadcast_.insert(broadcast_.end(), lncc::kBroadcast, weight);
      broadcast_float_.insert(broadcast_float_.end(), lncc::kBroadcast, static_cast<float>(weight));
    }
  }

  AxisWindow view() const {
    const bool rectangular = std::all_of(weights_.begin(), weights_.end(), [](double weight) { return weight == 1; });
    return {static_cast<int64_t>(weights_.size()), rectangular, weights_.data(), broadcast_.data(),
            broadcast_float_.data()};
  }

 private:
  std::vector<double> weights_, broadcast_;
  std::vector<float> broadcast_float_;
};

// The arguments that forward and backward share.
struct Arguments {
  Arguments(const Tensor& pred_arg, const Tensor& target_arg, const std::optional<Tensor>& mask_arg,
            const std::vector<double>& window_z, const std::vector<double>& window_y,
            const std::vector<double>& window_x, int64_t reduction_value)
      : reduction(check_reduction(kOp, reduction_value)),
        windows{WindowWeights(window_z), WindowWeights(window_y), WindowWeights(window_x)} {
    check_pair(kOp, "pred", pred_arg, "target", target_arg);
    if (mask_arg.has_value()) check_mask(kOp, *mask_arg, pred_arg);
    pred = as_contiguous(pred_arg);
    target = as_contiguous(target_arg);
    mask = as_contiguous(mask_arg);
  }

  ScalarType dtype() const { return pred.scalar_type(); }

  Problem problem(double volume, double smooth_nr, double smooth_dr) const {
    const int64_t dims = pred.dim() - 2;
    const auto axis = [&](int64_t from_last) { return from_last < dims ? pred.size(pred.dim() - 1 - from_last) : 1; };
    Problem problem = {};
    problem.channels = pred.size(0) * pred.size(1);
    problem.depth = axis(2);
    problem.height = axis(1);
    problem.width = axis(0);
    for (int i = 0; i < 3; ++i) problem.window[i] = windows[i].view();
    problem.volume = volume;
    problem.smooth_nr = smooth_nr;
    problem.smooth_dr = smooth_dr;
    problem.pred = pred.const_data_ptr();
    problem.target = target.const_data_ptr();
    problem.channels_per_mask = 1;
    if (mask.has_value()) {
      problem.mask = mask->const_data_ptr();
      if (mask->size(1) != 0) problem.channels_per_mask = pred.size(1) / mask->size(1);
    }
    return problem;
  }

  Reduction reduction;
  Tensor pred, target;
  std::optional<Tensor> mask;
  WindowWeights windows[3];
};

}  // namespace lncc
}  // namespace usreg
