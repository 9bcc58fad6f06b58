// Bending energy along a column of a field.
#pragma once

#include "cuda/field_losses/field_losses.cuh"

namespace usreg {
namespace cuda {

// What multiplies the penalties of the six second differences.
template <class R>
struct BendingWeights {
  R zz, zy, zx, yy, yx, xx;

  __device__ BendingWeights(const R* weights, R factor)
      : zz(factor * weights[0]),
        zy(factor * weights[1]),
        zx(factor * weights[2]),
        yy(factor * weights[3]),
        yx(factor * weights[4]),
        xx(factor * weights[5]) {}
};

// A value along the march: of the plane that comes in, the last and the one before.
template <class R>
struct History {
  R last = 0, earlier = 0;

  __device__ void push(R value) {
    earlier = last;
    last = value;
  }
};

// The loss of a column in the interior, from plane to plane.
template <class Element>
class BendingLoss {
 public:
  using T = Element;
  using R = Real<T>;
  static constexpr int kWeights = 6;
  static constexpr int kMargin = 1;

  __device__ BendingLoss(const FieldLoss<T>& loss, const FieldColumn& column, const R* weights)
      : weights_(weights, 1),
        exists_(Neighbours(column.y, loss.size[1], loss.has_y).inner() &&
                Neighbours(column.x, loss.size[2], true).inner()),
        has_y_(loss.has_y),
        row_(static_cast<int>(loss.size[2])) {}

  // Whether the loss map has the column: then it has neighbours, unless the axis y is not there.
  __device__ bool exists() const { return exists_; }

  // Takes in a plane; returns the loss of the plane before.
  __device__ R take(const T* here) {
    const T* const before = shifted(here, -row_);
    const T* const after = shifted(here, row_);
    const R value = read(here), x_before = read(here - 1), x_after = read(here + 1);
    const R step = value - last_, along_x = x_after - x_before;
    if (has_y_) {
      const R y_before = read(before), y_after = read(after);
      along_y_ = y_after - y_before;
      yy_ = (y_after - value) - (value - y_before);
      yx_ = (read(after + 1) - read(after - 1)) - (read(before + 1) - read(before - 1));
    }
    const R found = last_plane_ + weights_.zz * square(step - step_) +
                    weights_.zy * square(along_y_ - y_history_.earlier) +
                    weights_.zx * square(along_x - x_history_.earlier);
    last_plane_ = weights_.yy * square(yy_) + weights_.yx * square(yx_) +
                  weights_.xx * square((x_after - value) - (value - x_before));
    last_ = value;
    step_ = step;
    y_history_.push(along_y_);
    x_history_.push(along_x);
    return found;
  }

  // The loss of the last plane, where no axis z is there.
  __device__ R finish() const { return last_plane_; }

 private:
  __device__ static R square(R value) { return value * value; }

  const BendingWeights<R> weights_;
  const bool exists_, has_y_;
  const int row_;
  R along_y_ = 0, yy_ = 0, yx_ = 0;  // 0 for good without the axis y
  R last_plane_ = 0, last_ = 0, step_ = 0;
  History<R> y_history_, x_history_;
};

// The gradient, from plane to plane: each second difference that takes the column in is found again.
template <bool kGradMap, class Element>
class BendingGradient {
 public:
  using T = Element;
  using R = Real<T>;
  static constexpr bool kHasMap = kGradMap;
  static constexpr int kWeights = 6;
  static constexpr int kMargin = 1;
  static constexpr int kReach = 2;
  static constexpr int kBlocks = (kHasMap ? 6 : 16) * 2 / sizeof(R);  // per multiprocessor, as registers allow
  static constexpr R kSlopeFactor = 2;

  __device__ BendingGradient(const FieldLoss<T>& loss, const FieldColumn& column, const R* weights, R factor,
                             const GradMap<kHasMap, R>& grad)
      : BendingGradient(Neighbours(column.y, loss.size[1], loss.has_y), Neighbours(column.x, loss.size[2], true), loss,
                        weights, factor, grad) {}

  // Takes in a plane; returns the gradient of the plane kReach before. in_map: whether the loss map has the plane;
  // has_earlier: whether planes of the march reach back far enough for the differences along z.
  __device__ R take(const T* here, bool in_map, bool has_earlier) {
    const T* const far_before = shifted(here, y_before_2_);
    const T* const far_after = shifted(here, y_after_2_);
    const R value = read(here);
    const R y_before_2 = read(far_before), y_after_2 = read(far_after);
    const R y_before = read(here, y_before_1_), y_after = read(here, y_after_1_);
    if (x_.before == 2) {
      x_before_2_ = read(here - 2);
      corners_[0] = read(far_before - 2);
      corners_[2] = read(far_after - 2);
    }
    if (x_.before > 0) x_before_1_ = read(here - 1);
    if (x_.after > 0) x_after_1_ = read(here + 1);
    if (x_.after == 2) {
      x_after_2_ = read(here + 2);
      corners_[1] = read(far_before + 2);
      corners_[3] = read(far_after + 2);
    }
    const R x_before = x_before_1_, x_after = x_after_1_, x_before_2 = x_before_2_, x_after_2 = x_after_2_;
    // Across the neighbours before and after.
    const R from_y_before = value - y_before_2, from_y_after = y_after_2 - value;
    const R from_x_before = value - x_before_2, from_x_after = x_after_2 - value;

    // Along z, of the last plane.
    const R step = value - last_;
    R straight = weights_.zz * grads_.here * both(y_here_, x_here_, step - step_);
    R mixed = weights_.zy * (grads_.y_after * both(y_after_, x_here_, from_y_after - history_.y_after.earlier) -
                             grads_.y_before * both(y_before_, x_here_, from_y_before - history_.y_before.earlier)) +
              weights_.zx * (grads_.x_after * both(y_here_, x_after_, from_x_after - history_.x_after.earlier) -
                             grads_.x_before * both(y_here_, x_before_, from_x_before - history_.x_before.earlier));
    if (!has_earlier) straight = mixed = 0;

    // In this plane.
    const auto grad = [&](int y, int x, const Mask& in_y, const Mask& in_x) {
      return grad_.at(y, x, in_map && (in_y && in_x));
    };
    grads_ = {grad(0, 0, y_here_, x_here_), grad(-1, 0, y_before_, x_here_), grad(1, 0, y_after_, x_here_),
              grad(0, -1, y_here_, x_before_), grad(0, 1, y_here_, x_after_)};
    const R yy =
        ends_less_middle(grads_.y_before * both(y_before_, x_here_, (value - y_before) - (y_before - y_before_2)),
                         grads_.here * both(y_here_, x_here_, (y_after - value) - (value - y_before)),
                         grads_.y_after * both(y_after_, x_here_, (y_after_2 - y_after) - (y_after - value)));
    const R xx =
        ends_less_middle(grads_.x_before * both(y_here_, x_before_, (value - x_before) - (x_before - x_before_2)),
                         grads_.here * both(y_here_, x_here_, (x_after - value) - (value - x_before)),
                         grads_.x_after * both(y_here_, x_after_, (x_after_2 - x_after) - (x_after - value)));
    const R yx =
        (grad(-1, -1, y_before_, x_before_) * both(y_before_, x_before_, from_x_before - (y_before_2 - corners_[0])) -
         grad(-1, 1, y_before_, x_after_) * both(y_before_, x_after_, from_x_after - (corners_[1] - y_before_2))) -
        (grad(1, -1, y_after_, x_before_) * both(y_after_, x_before_, (y_after_2 - corners_[2]) - from_x_before) -
         grad(1, 1, y_after_, x_after_) * both(y_after_, x_after_, (corners_[3] - y_after_2) - from_x_after));
    const R in_plane = in_map ? weights_.yy * yy + weights_.yx * yx + weights_.xx * xx : R(0);

    grad_.advance();
    last_ = value;
    step_ = step;
    history_.y_before.push(from_y_before);
    history_.y_after.push(from_y_after);
    history_.x_before.push(from_x_before);
    history_.x_after.push(from_x_after);
    const R found = pending_[0] + (straight + mixed);
    pending_[0] = pending_[1] - 2 * straight;
    pending_[1] = in_plane + (straight - mixed);
    return found;
  }

  // The gradient of the planes that no other follow, i = 0 being the first of kReach.
  __device__ R finish(int i) const { return i == 0 ? pending_[0] : pending_[1]; }

 private:
  __device__ BendingGradient(const Neighbours& y, const Neighbours& x, const FieldLoss<T>& loss, const R* weights,
                             R factor, const GradMap<kHasMap, R>& grad)
      : weights_(weights, factor),
        x_(x),
        y_before_2_(y.before == 2 ? -2 * static_cast<int>(loss.size[2]) : 0),
        y_before_1_(y.before > 0 ? -static_cast<int>(loss.size[2]) : 0),
        y_after_1_(y.after > 0 ? static_cast<int>(loss.size[2]) : 0),
        y_after_2_(y.after == 2 ? 2 * static_cast<int>(loss.size[2]) : 0),
        y_here_(y.inner()),
        y_before_(loss.has_y && y.inner_before()),
        y_after_(loss.has_y && y.inner_after()),
        x_here_(x.inner()),
        x_before_(x.inner_before()),
        x_after_(x.inner_after()),
        grad_(grad) {}

  __device__ static R ends_less_middle(R before, R here, R after) { return (before + after) - 2 * here; }

  const BendingWeights<R> weights_;
  const Neighbours x_;
  const int y_before_2_, y_before_1_, y_after_1_, y_after_2_;
  // Whether the column and its neighbours along an axis are in the interior, as far as that axis goes.
  const Mask y_here_, y_before_, y_after_, x_here_, x_before_, x_after_;
  GradMap<kHasMap, R> grad_;
  struct {
    R here, y_before, y_after, x_before, x_after;
  } grads_ = {1, 1, 1, 1, 1};  // of the last plane
  struct {
    History<R> y_before, y_after, x_before, x_after;
  } history_;
  R x_before_2_ = 0, x_before_1_ = 0, x_after_1_ = 0, x_after_2_ = 0, corners_[4] = {};
  R last_ = 0, step_ = 0;
  R pending_[2] = {};  // of the planes whose gradient the next ones complete
};

}  // namespace cuda
}  // namespace usreg
