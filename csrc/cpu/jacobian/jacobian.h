// What the CPU kernels of the Jacobian determinant and of the folding loss work on.
//
// A volume is cut into blocks: a band of rows, in a chunk of planes. A kernel marches through a block from plane to
// plane, so that the rows that neighbours share stay in the cache. Blocks have a size that depends only on the field's,
// and a sum of their own: the result has the same bits for any number of threads.
#pragma once

#include <cstdint>

namespace usreg {
namespace jacobian {

constexpr int kMostDims = 3;

// A block of one field of the batch: rows [y, y_end) of the planes [z, z_end).
struct Block {
  int64_t image, z, z_end, y, y_end;
};

// R is the type of fields and of arithmetic. Sizes are those of the axes z, y, x; a field of fewer dimensions has the
// last ones, and 1 for the others. Components and derivatives are in the order of the axes that there are.
template <class R>
struct Problem {
  int dims;
  int64_t size[3];
  R scale[3];  // what multiplies the derivatives along each axis

  const R* field;  // (batch, dims, z, y, x)
  const R* zeros;  // a row of zeros: of the axes of one voxel
  bool folds;      // the values are max(0, margin - determinant)
  R margin;

  R* map;             // forward: where the values go, (batch, z, y, x); null to sum them
  const R* grad_map;  // backward: the gradient to each value, or null where it is grad
  R grad;
  void* gradient;  // backward: of the field's shape and of its dtype

  int64_t row() const { return size[2]; }
  int64_t plane() const { return size[1] * size[2]; }
  int64_t voxels() const { return size[0] * plane(); }
  int first_axis() const { return 3 - dims; }

  // Where the row (z, y) of an image begins in a map, and in a component of the field.
  int64_t in_map(int64_t image, int64_t z, int64_t y) const { return image * voxels() + z * plane() + y * row(); }
  int64_t in_field(int64_t image, int component, int64_t z, int64_t y) const {
    return (image * dims + component) * voxels() + z * plane() + y * row();
  }
};

// Rows of numbers that a kernel of a block takes, of size[2] each and kPad before and behind: of forward, and of the
// gradient of a block of so many rows.
constexpr int64_t kPad = 16;

inline int64_t row_stride(int64_t width) { return (width + 2 * kPad + 15) / 16 * 16; }

// Of the gradient: pulls along each axis of each component, those along y of the row before, and, for each row of the
// block, what is known of the gradient of its plane and the pulls along z of the plane before.
inline int64_t gradient_rows(int dims, int64_t block_rows) { return dims * dims + dims + 2 * dims * block_rows + 1; }

}  // namespace jacobian
}  // namespace usreg
