// What the CPU kernels of gaussian smoothing work on.
//
// One pass over memory for all axes. A task owns a block of rows, over the whole depth, and marches through it along z.
// The planes around the current one lie in the second-level cache, for which the block is cut. Row by row, a weighted
// sum of these planes is formed, in a ring of as many rows as the sum along y takes; each finished row is then summed
// along x. Every voxel is computed by the same operations, whatever the tasks: bits do not depend on threads.
//
//   axis_filter.h        the filter of an axis, with what lies outside, as a band matrix
//   sum_rows.inc         the weighted sum of a few rows, which is all that is computed
//   march.inc            which rows these are
//   kernel.inc           includes these, once per instruction set
//   gaussian_smooth.cpp  the operators: checks, memory, threads
#pragma once

#include <cstdint>

#include "common/dtypes.h"
#include "cpu/gaussian_smooth/axis_filter.h"

namespace usreg {
namespace gaussian_smooth {

// A filter of `maps` volumes, or its adjoint. R computes. Axes are z, y, x; those that are not there have size 1.
template <class R>
struct Problem {
  int64_t maps;
  Band band[3];
  const R* rows[3];  // the bands' rows
  bool is_identity[3];
  // Along x, a row is filtered as one between margins, and some elements at its ends are computed again by their rows.
  const int64_t* margin;  // (2, reach): the elements that the margins repeat, from the far left on; -1 for zeros
  int64_t fixed;          // elements at either end that are computed again; all, where each has a row of its own

  // Blocks of rows and columns, all of one size except the last ones.
  int64_t block_rows, block_columns, row_blocks, column_blocks;
  int64_t kept_planes;  // of the ring of planes, where planes are converted
  int64_t pitch;        // elements of a row in the rings

  int64_t depth() const { return band[0].size; }
  int64_t voxels() const { return band[0].size * band[1].size * band[2].size; }
  int64_t units() const { return maps * row_blocks * column_blocks * depth(); }
  int64_t rows_with_halo() const { return block_rows + 2 * band[1].reach; }
};

// Memory of a thread.
template <class R>
struct Scratch {
  R* planes;            // (kept_planes, rows_with_halo, pitch), where planes are converted
  R* ring;              // (taps along y, pitch)
  R* row;               // (2, pitch): rows between their margins
  R* result;            // (pitch), where results are converted
  const R** pointers;   // (the most taps of an axis)
  const R** ring_rows;  // (2 * taps along y)
};

}  // namespace gaussian_smooth
}  // namespace usreg
