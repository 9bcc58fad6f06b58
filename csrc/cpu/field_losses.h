// What the losses of one displacement field's differences have in common: gradient smoothness and bending energy.
//
// Either is a sum over voxels of a few terms, each the square (or the magnitude) of one difference of the field around
// the voxel. A loss is given as the list of its differences; one kernel evaluates any such list, and its gradient,
// which follows from the same list: where a difference takes a voxel in with a sign, the voxel gets the term's
// derivative back with that sign. Forward and backward read the field once each, and backward needs nothing that
// forward would have to write.
#pragma once

#include <cstdint>

namespace usreg {

constexpr int kFieldDifferences = 6;  // at most, that of the bending energy of a volume
constexpr int kFieldShares = 21;      // at most, likewise
constexpr int kFieldReach = 2;        // no voxel's gradient depends on one that is further away along an axis
constexpr int64_t kFieldTile = 512;   // voxels of a row that the kernel holds in the first-level cache

// In voxels.
struct Offset {
  int z, y, x;
};

// A field of shape (B, n, spatial...): B * n components, each of size[0] x size[1] x size[2] voxels. The axes that a
// field of fewer dimensions lacks come first, with size 1.
struct FieldShape {
  int64_t components, channels;
  int first_axis;
  int64_t size[3];

  int64_t rows() const { return components * size[0] * size[1]; }
  int64_t component_numel() const { return size[0] * size[1] * size[2]; }
};

// The voxels [begin, end) of each component.
struct FieldRegion {
  int64_t begin[3], end[3];

  int64_t size(int axis) const { return end[axis] - begin[axis]; }
  int64_t numel() const { return size(0) * size(1) * size(2); }
  bool has_row(int64_t z, int64_t y) const { return z >= begin[0] && z < end[0] && y >= begin[1] && y < end[1]; }

  // Where the row (z, y) of a component begins in a tensor that holds this region alone, as if it had the voxel x = 0.
  int64_t row_start(int64_t component, int64_t z, int64_t y) const {
    return ((component * size(0) + z - begin[0]) * size(1) + y - begin[1]) * size(2) - begin[2];
  }
};

// A difference around a voxel of its region: taps[0] - taps[1], or (taps[0] - taps[1]) - (taps[2] - taps[3]), in this
// order, because neighbours are alike and so their differences lose nothing to rounding.
struct Difference {
  int tap_count;
  Offset taps[4];
  FieldRegion region;
};

// How often a difference takes in the voxel at an offset from its own.
struct Share {
  int difference;
  Offset offset;
  int factor;
};

enum class Penalty { kSquare, kMagnitude };

struct FieldTerms {
  Penalty penalty;
  FieldRegion map;  // the voxels of the loss map
  int difference_count;
  Difference differences[kFieldDifferences];
  int share_count;
  Share shares[kFieldShares];
};

// A loss as the kernel evaluates it, on a field of elements T; R is the type that it computes with.
template <class T, class R>
struct FieldLoss {
  FieldShape shape;
  const FieldTerms* terms;
  const R* weights;  // (channels, differences): what multiplies each penalty
  const T* field;

  R* map;             // forward: where the loss map goes; null to sum it
  const R* grad_map;  // backward: a factor for each value of the loss map, or null
  T* gradient;        // backward: where the gradient goes
};

}  // namespace usreg
