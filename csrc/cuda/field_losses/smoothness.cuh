// Gradient smoothness along a column of a field.
#pragma once

#include "cuda/field_losses/field_losses.cuh"

namespace usreg {
namespace cuda {

// The differences are u(i + 1) - u(i), or u(i + 1) - u(i - 1) where all of a voxel's neighbours exist. Either way, two
// voxels enter that are kReach apart, and the difference along z is that of the plane before the farther one.

// The loss, from plane to plane.
template <bool kCentral, Penalty kPenalty, class Element>
class SmoothnessLoss {
 public:
  using T = Element;
  using R = Real<T>;
  static constexpr int kWeights = 3;
  static constexpr int kMargin = kCentral ? 1 : 0;

  __device__ SmoothnessLoss(const FieldLoss<T>& loss, const FieldColumn& column, const R* weights)
      : y_(column.y, loss.size[1], loss.has_y),
        x_(column.x, loss.size[2], true),
        row_(static_cast<int>(loss.size[2])),
        weight_z_(weights[0]),
        weight_y_(weights[1]),
        weight_x_(weights[2]) {}

  // Whether the loss map has the column.
  __device__ bool exists() const { return !kCentral || (y_.inner() && x_.inner()); }

  // Takes in a plane; returns the loss of the plane before.
  __device__ R take(const T* here) {
    const R value = read(here);
    if (y_.after > 0) along_y_ = read(here, row_) - (kCentral ? read(here, -row_) : value);
    if (x_.after > 0) along_x_ = read(here + 1) - (kCentral ? read(here - 1) : value);
    const R found = last_plane_ + weight_z_ * penalty<kPenalty>(value - (kCentral ? earlier_ : last_));
    last_plane_ = weight_y_ * penalty<kPenalty>(along_y_) + weight_x_ * penalty<kPenalty>(along_x_);
    earlier_ = last_;
    last_ = value;
    return found;
  }

  // The loss of the last plane, which no other follows.
  __device__ R finish() const { return last_plane_; }

 private:
  const Neighbours y_, x_;
  const int row_;
  const R weight_z_, weight_y_, weight_x_;
  R along_y_ = 0, along_x_ = 0;  // 0 for good where there is no difference
  R last_plane_ = 0, earlier_ = 0, last_ = 0;
};

// The gradient, from plane to plane.
template <bool kCentral, Penalty kPenalty, bool kGradMap, class Element>
class SmoothnessGradient {
 public:
  using T = Element;
  using R = Real<T>;
  static constexpr bool kHasMap = kGradMap;
  static constexpr int kWeights = 3;
  static constexpr int kMargin = kCentral ? 1 : 0;
  static constexpr int kReach = kCentral ? 2 : 1;
  static constexpr int kBlocks = 8;  // per multiprocessor: 64 registers a thread
  static constexpr R kSlopeFactor = kPenalty == Penalty::kSquare ? 2 : 1;

  __device__ SmoothnessGradient(const FieldLoss<T>& loss, const FieldColumn& column, const R* weights, R factor,
                                const GradMap<kHasMap, R>& grad)
      : SmoothnessGradient(Neighbours(column.y, loss.size[1], loss.has_y), Neighbours(column.x, loss.size[2], true),
                           loss, weights, factor, grad) {}

  // Takes in a plane; returns the gradient of the plane kReach before. in_map: whether the loss map has the plane;
  // has_earlier: whether planes of the march reach back far enough for the difference along z.
  __device__ R take(const T* here, bool in_map, bool has_earlier) {
    const R value = read(here);
    if (y_before_exists_) y_before_ = pull(value - read(here, -row_), -1, 0, in_map);
    if (y_after_exists_) y_after_ = pull(read(here, row_) - value, kMargin, 0, in_map);
    if (x_before_exists_) x_before_ = pull(value - read(here - kReach), 0, -1, in_map);
    if (x_after_exists_) x_after_ = pull(read(here + kReach) - value, 0, kMargin, in_map);
    const R in_plane = in_map ? weight_y_ * (y_before_ - y_after_) + weight_x_ * (x_before_ - x_after_) : R(0);
    if (exists_) along_z_ = weight_z_ * (slope<kPenalty>(value - (kCentral ? earlier_ : last_)) * last_grad_);
    const R along_z = has_earlier ? along_z_ : R(0);
    last_grad_ = grad_.at(0, 0, in_map && exists_);
    grad_.advance();
    earlier_ = last_;
    last_ = value;
    const R found = pending_[0] - along_z;
    pending_[0] = pending_[1];
    pending_[kReach - 1] = in_plane + along_z;
    return found;
  }

  // The gradient of the planes that no other follow, i = 0 being the first of kReach.
  __device__ R finish(int i) const { return i == 0 ? pending_[0] : pending_[1]; }

 private:
  __device__ SmoothnessGradient(const Neighbours& y, const Neighbours& x, const FieldLoss<T>& loss, const R* weights,
                                R factor, const GradMap<kHasMap, R>& grad)
      : exists_(!kCentral || (y.inner() && x.inner())),
        y_before_exists_(loss.has_y && (kCentral ? y.inner_before() && x.inner() : y.before > 0)),
        y_after_exists_(loss.has_y && (kCentral ? y.inner_after() && x.inner() : y.after > 0)),
        x_before_exists_(kCentral ? x.inner_before() && y.inner() : x.before > 0),
        x_after_exists_(kCentral ? x.inner_after() && y.inner() : x.after > 0),
        row_(kReach * static_cast<int>(loss.size[2])),
        weight_z_(factor * weights[0]),
        weight_y_(factor * weights[1]),
        weight_x_(factor * weights[2]),
        grad_(grad) {}

  // What a difference passes on; y, x: the voxel that it belongs to.
  __device__ R pull(R difference, int y, int x, bool exists) const {
    return slope<kPenalty>(difference) * grad_.at(y, x, exists);
  }

  const bool exists_, y_before_exists_, y_after_exists_, x_before_exists_, x_after_exists_;
  const int row_;
  const R weight_z_, weight_y_, weight_x_;
  GradMap<kHasMap, R> grad_;
  // 0 for good where there is no difference.
  R along_z_ = 0, y_before_ = 0, y_after_ = 0, x_before_ = 0, x_after_ = 0;
  R last_grad_ = 1, earlier_ = 0, last_ = 0;
  R pending_[2] = {};  // of the planes whose gradient the next ones complete
};

}  // namespace cuda
}  // namespace usreg
