// The losses of one displacement field's differences, gradient smoothness and bending energy, as lists. The CPU kernels
// evaluate the lists; the CUDA ones spell the same differences out (cuda/field_losses/smoothness.cuh,
// cuda/field_losses/bending.cuh). No header of torch.
//
// Either is a sum over voxels of a few terms, each the square (or the magnitude) of one difference of the field around
// the voxel, times a weight (usreg_kernels/ops/field_weights.py). The gradient follows from the same list: where a
// difference takes a voxel in with a sign, the voxel gets the term's derivative back with that sign. Forward and
// backward read the field once each, and backward needs nothing that forward would have to write.
#pragma once

#include <cstdint>

namespace usreg {

constexpr int kFieldDifferences = 6;  // at most, that of the bending energy of a volume
constexpr int kFieldShares = 21;      // at most
constexpr int kFieldReach = 2;        // no voxel's gradient depends on one that is further away along an axis

enum class FieldLossKind { kForwardDifferences, kCentralDifferences, kBendingEnergy };

enum class Penalty { kSquare, kMagnitude };

// In voxels.
struct Offset {
  int z, y, x;

  constexpr int along(int axis) const { return axis == 0 ? z : axis == 1 ? y : x; }
};

constexpr Offset step_along(int axis, int voxels) {
  return {axis == 0 ? voxels : 0, axis == 1 ? voxels : 0, axis == 2 ? voxels : 0};
}

constexpr Offset operator+(const Offset& a, const Offset& b) { return {a.z + b.z, a.y + b.y, a.x + b.x}; }

constexpr Offset operator-(const Offset& a, const Offset& b) { return {a.z - b.z, a.y - b.y, a.x - b.x}; }

constexpr bool operator==(const Offset& a, const Offset& b) { return a.z == b.z && a.y == b.y && a.x == b.x; }

// A difference around a voxel: taps[0] - taps[1], or (taps[0] - taps[1]) - (taps[2] - taps[3]), in this order, because
// neighbours are alike and so their differences lose nothing to rounding.
struct Taps {
  int count;
  Offset at[4];
};

// How often a difference takes in the voxel at an offset from its own.
struct Share {
  int difference;
  Offset offset;
  int factor;
};

struct FieldStencil {
  int margin = 0;  // how many voxels at each border the loss map leaves out
  int difference_count = 0;
  Taps differences[kFieldDifferences] = {};
  int share_count = 0;
  Share shares[kFieldShares] = {};

  constexpr void add(const Taps& taps) {
    differences[difference_count] = taps;
    share_out(difference_count);
    ++difference_count;
  }

  // A difference exists around the voxels that lie at least so far from the first ones along the axes, and from the
  // last.
  constexpr Offset distance_from_first(int difference, int first_axis) const {
    return distance(difference, first_axis, -1);
  }
  constexpr Offset distance_from_last(int difference, int first_axis) const {
    return distance(difference, first_axis, 1);
  }

 private:
  constexpr Offset distance(int difference, int first_axis, int sign) const {
    int found[3] = {};
    for (int axis = 0; axis < 3; ++axis) {
      found[axis] = axis < first_axis ? 0 : margin;
      for (int i = 0; i < differences[difference].count; ++i) {
        const int needed = sign * differences[difference].at[i].along(axis);
        found[axis] = needed > found[axis] ? needed : found[axis];
      }
    }
    return {found[0], found[1], found[2]};
  }

  // Which voxels take part in a difference: the adjoint of its taps, those of one offset together.
  constexpr void share_out(int index) {
    constexpr int kSigns[] = {1, -1, -1, 1};
    const int first = share_count;
    for (int i = 0; i < differences[index].count; ++i) {
      const Offset tap = differences[index].at[i];
      int found = first;
      while (found < share_count && !(shares[found].offset == tap)) ++found;
      if (found == share_count) {
        shares[found] = {index, tap, 0};
        ++share_count;
      }
      shares[found].factor += kSigns[i];
    }
  }
};

// The differences of a loss of a field whose first axes, up to first_axis, do not exist.
constexpr FieldStencil field_stencil(FieldLossKind kind, int first_axis) {
  FieldStencil stencil;
  stencil.margin = kind == FieldLossKind::kForwardDifferences ? 0 : 1;
  for (int axis = first_axis; axis < 3; ++axis) {
    const Offset after = step_along(axis, 1), before = step_along(axis, -1), here = {};
    if (kind == FieldLossKind::kForwardDifferences) {
      stencil.add({2, {after, here}});
    } else if (kind == FieldLossKind::kCentralDifferences) {
      stencil.add({2, {after, before}});
    } else {
      stencil.add({4, {after, here, here, before}});
      for (int other = axis + 1; other < 3; ++other) {
        const Offset up = step_along(other, 1), down = step_along(other, -1);
        stencil.add({4, {after + up, after + down, before + up, before + down}});
      }
    }
  }
  return stencil;
}

// A field of shape (B, n, spatial...): B * n components, each of size[0] x size[1] x size[2] voxels. The axes that a
// field of fewer dimensions lacks come first, with size 1.
struct FieldShape {
  int64_t components, channels;
  int first_axis;
  int64_t size[3];

  int64_t rows() const { return components * size[0] * size[1]; }
  int64_t component_numel() const { return size[0] * size[1] * size[2]; }
};

}  // namespace usreg
