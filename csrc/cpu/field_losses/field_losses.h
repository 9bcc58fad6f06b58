// How the CPU kernels evaluate the losses of common/field_terms.h, row by row.
#pragma once

#include <cstdint>

#include "common/field_terms.h"

namespace usreg {

constexpr int64_t kFieldTile = 512;  // voxels of a row that the kernel holds in the first-level cache

// The voxels [begin, end) of each component.
struct FieldRegion {
  int64_t begin[3], end[3];

  int64_t size(int axis) const { return end[axis] - begin[axis]; }
  int64_t numel() const { return size(0) * size(1) * size(2); }
  bool has_row(int64_t z, int64_t y) const { return z >= begin[0] && z < end[0] && y >= begin[1] && y < end[1]; }

  // Where the row (z, y) of a component begins in a tensor that holds only this region, as if it had the voxel x = 0.
  int64_t row_start(int64_t component, int64_t z, int64_t y) const {
    return ((component * size(0) + z - begin[0]) * size(1) + y - begin[1]) * size(2) - begin[2];
  }
};

// A difference, and the voxels around which it exists.
struct Difference {
  int tap_count;
  Offset taps[4];
  FieldRegion region;
};

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
  T* gradient;        // backward: where the gradient goes; null if it is not needed

  const T* other;     // a field whose squared distance is added to the loss of a voxel; null for none
  R error_weight;     // of the squared distance, or of the distance in the gradient
  T* other_gradient;  // backward: where the gradient to that field goes, or null
};

}  // namespace usreg
