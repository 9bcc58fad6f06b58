// Local normalised cross-correlation: what the op (lncc.cpp), the division of work (plan.cpp) and the kernels
// (kernel.inc) share.
//
// One march computes the loss and, where an input needs it, the gradient. Volumes are (D, H, W), the axes z, y, x:
//
//    planes of the inputs       tiles, along x          rows, of all x            planes of the gradient
//
//      | | | | | | | |  gather  +-----+-----+--         +---------------+
//    --+-+-+-+-+-+-+-+  ----->  | p, t, pp, |  ------>  | 3 or 5 maps   |  ----->  +----------+  ----->  | | | |
//      | | | | | | | |  sums    | tt, pt    |  sums     | of derivatives|  sums    | history  |  sums
//      n + 2r of them   along z +-----+-----+-- along   +---------------+  along   | of blocks|  along z
//                               n planes        y, x;     n planes         x, y    +----------+
//                                               ncc
//
// 1. A block of n planes is taken at once. For each block of rows, and for tiles along x that fit the first-level
//    cache, five window sums along z are formed (gather), then along y and x, and turned into the correlation and its
//    derivatives on the spot, where possible without leaving registers. What is summed along x lies a few columns ahead
//    of its sums, and the last columns are carried on to the next tile.
// 2. The rows of maps are summed along x and y, and joined along z to what earlier blocks of planes left, which
//    completes the gradient r rows and r planes before.
//
// Along y and z a sum is made of a suffix sum of an earlier block, the sums of whole blocks after it and a prefix sum
// of this block, so that its cost hardly grows with the window. With blocks of r rows:
//
//      block b - 2  [ . . s s ]   block b - 1  [ w w w w ]   block b  [ p p p . ]      sum = suffix + whole + prefix
//
// Nothing is ever subtracted: a running sum that drops old values leaves a residue after bright tissue that is as large
// as smooth_dr. Sums of values are float64, since variances cancel. Sums of maps have the precision of the loss;
// values meet them less a pivot of their channel, which drops out in exact arithmetic and saves the digits of float32.
//
// Every sum is anchored at fixed positions of the volume, and the loss is added up block by block in a fixed order, so
// that the result has the same bits however the volume is divided among threads.
#pragma once

#include <cstdint>

namespace usreg {

namespace lncc {

constexpr int64_t kTile = 32;       // columns of a tile
constexpr int64_t kStaged = 48;     // columns of inputs that are gathered at a time
constexpr int kPlanes = 4;          // per block, where the window spans several
constexpr int64_t kSums = 5;        // of p, t, pp, tt and pt
constexpr int64_t kBroadcast = 16;  // lanes of the widest vector

// The window along one axis. The pointers are those of a WindowWeights (lncc.cpp); kernels call no templates of
// headers.
struct AxisWindow {
  int64_t size;                  // odd
  bool rectangular;              // whether all weights are 1
  const double* weights;         // size of them
  const double* broadcast;       // each weight kBroadcast times, to be read as a vector
  const float* broadcast_float;  // the same in float32

  int64_t radius() const { return size / 2; }
};

// What to compute on which numbers. Volumes are contiguous; batch and channels count as one axis of channels.
// T is the input's type, Real<T> is float, or double for double.
struct Problem {
  int64_t channels, depth, height, width;
  AxisWindow window[3];  // z, y, x
  double volume;         // of the window, the sum of its weights
  double smooth_nr, smooth_dr;
  const void* pred;    // (channels, D, H, W) of T
  const void* target;  // the same
  const void* mask;    // null, or (channels / channels_per_mask, D, H, W) weights of Real<T>
  int64_t channels_per_mask;
  const void* grad_map;         // null, or (channels, D, H, W) factors of the maps, of Real<T>
  void* loss_map;               // null, or (channels, D, H, W) of Real<T>, for the weighted, negated correlation
  void* pred_grad;              // null, or (channels, D, H, W)
  void* target_grad;            // null, or the same; only together with pred_grad
  bool gradient_of_input_type;  // whether gradients are of T, not of Real<T>
  double scale;                 // factor of the gradients
};

// Blocks from begin to before end.
struct Range {
  int64_t begin, end;
};

// What a thread computes at a time: blocks of planes and of rows of one channel.
struct Task {
  int64_t channel;
  Range z, y;
};

// How volumes are cut into blocks, and how many blocks make a task.
//
// Along z, with n planes per block, block b holds planes b n + [0, n) of the statistics, and completes the planes r
// before of the gradient. Along y it is the same, and the sums along z are needed r rows further on.
struct Plan {
  Plan(const Problem& problem, int64_t real_size, int64_t threads);

  int64_t map_count;     // 0, 3, or 5 for both gradients
  int64_t planes, rows;  // per block
  int64_t z_blocks, y_blocks;
  int64_t z_before, y_before;  // blocks of statistics before its own that a part of the gradient needs
  int64_t y_first;             // blocks of sums along z that the sums along y need before they can start
  int64_t z_parts, y_parts;    // tasks per channel
  int64_t tasks;

  Task task(int64_t index) const;
};

// Where a task's buffers lie in the scratch memory of its thread: offsets in bytes, sizes in elements.
struct Layout {
  Layout(const Problem& problem, const Plan& plan, int64_t real_size, int64_t vector_bytes);

  int64_t width;        // of rows of Real<T>: the volume's, rounded up to vectors
  int64_t margin;       // zeros before a row of maps
  int64_t stride;       // between such rows, with zeros before and after
  int64_t lag;          // columns that sums along x lie behind, a multiple of the vector
  int64_t carry;        // columns of the last tile that they need
  int64_t line;         // columns of the last tile and this one
  int64_t strip;        // columns gathered for the first tile
  int64_t tiles;        // along x
  int64_t zero_count;   // of zeros to read
  int64_t z_state_row;  // what the sums along z keep per row

  int64_t input_planes, zeros, staged;                      // planes of inputs, a row of zeros, and a part of rows
  int64_t lines, y_state, sums, carries, x_sums, x_buffer;  // window sums, float64: along z, along z and y, along all
  int64_t maps, map_sums, map_x_buffer, map_state;          // of Real<T>
  int64_t joined, z_state, gradient_rows;                   // of Real<T>
  int64_t bytes;
};

}  // namespace lncc
}  // namespace usreg
