// How a call of local normalised cross-correlation is cut into blocks: decided on the host, only from shapes.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cuda/lncc/march.cuh"

namespace usreg {
namespace cuda {

// The weights along each axis, an odd number of them, and what turns a window's sum into its mean.
struct LnccWindow {
  std::vector<double> z, y, x;
  double volume;

  static int halo(const std::vector<double>& weights) { return static_cast<int>(weights.size() / 2); }
};

inline bool is_box(const std::vector<double>& weights) {
  return std::all_of(weights.begin(), weights.end(), [](double weight) { return weight == 1; });
}

inline bool is_symmetric(const std::vector<double>& weights) {
  return std::equal(weights.begin(), weights.end(), weights.rbegin());
}

// The march takes a plane of images along its rows: give it the rows as planes of one row each.
inline void march_along_rows(LnccShape& shape, LnccWindow& window) {
  if (shape.depth != 1 || window.z.size() != 1) return;
  std::swap(shape.depth, shape.height);
  std::swap(window.z, window.y);
}

// A march: its kernel's constants, and how it is launched.
struct MarchPlan {
  int halo;  // along z and x
  bool box;
  MarchWeights weights;
  MarchGrid grid;
};

// Whether the march takes a window: it has one size along z and x, of 3 to 15, and offsets in a plane fit 32 bits.
inline bool can_march(const LnccShape& shape, const LnccWindow& window) {
  const int halo = LnccWindow::halo(window.x);
  const bool sizes = halo >= 1 && halo <= kLargestMarch / 2 && LnccWindow::halo(window.z) == halo &&
                     LnccWindow::halo(window.y) <= kLargestMarch / 2;
  const int64_t columns = (ceil_div<int64_t>(shape.width, kMapBlock) + 1) * kMapBlock;
  const bool fits = (shape.height + kMarchThreads) * columns * 5 < INT32_MAX;
  return sizes && fits && is_symmetric(window.z) && is_symmetric(window.y) && is_symmetric(window.x);
}

constexpr int64_t kWaves = 5;  // of blocks: with more of them, their ends leave few slots empty as it is

// How many planes a block takes, out of those numbers that finish first by the planes marched: chunks cost their halos
// again, but fill more of the slots that blocks run in at once.
inline int choose_chunk(int depth, int halo, int64_t columns, int64_t slots) {
  const auto cost = [&](int chunks) {
    return ceil_div(columns * chunks, slots) * (ceil_div(depth, chunks) + 2 * halo);
  };
  int best = 1;
  const int64_t most = std::min<int64_t>(depth / (halo + 1), ceil_div(kWaves * slots, columns));
  for (int chunks = 2; chunks <= most; ++chunks) {
    if (cost(chunks) < cost(best)) best = chunks;
  }
  return ceil_div(depth, best);
}

// Lanes per row: those that leave the fewest without a voxel of their own.
inline int choose_lanes(const LnccShape& shape, int halo) {
  const int halo_lanes = ceil_div(halo, kColumns);
  int best = kWarp;
  double least = 0;
  for (int lanes = kWarp; lanes > 2 * halo_lanes && lanes >= 8; lanes /= 2) {
    const int64_t owned = (lanes - 2 * halo_lanes) * kColumns, rows = kMarchThreads / lanes;
    const double threads = static_cast<double>(ceil_div<int64_t>(shape.width, owned) * lanes) *
                           static_cast<double>(ceil_div<int64_t>(shape.height, rows) * rows);
    if (least == 0 || threads < least) {
      best = lanes;
      least = threads;
    }
  }
  return best;
}

inline int march_blocks_per_multiprocessor(int halo) {
  return halo <= 3 ? kMarchBlocks<3, 3> : halo == 4 ? kMarchBlocks<4, 3> : kMarchBlocks<5, 3>;
}

inline MarchPlan plan_march(const LnccShape& shape, const LnccWindow& window, int multiprocessors) {
  MarchPlan plan = {};
  plan.halo = LnccWindow::halo(window.x);
  plan.box = window.y.size() == window.x.size() && is_box(window.z) && is_box(window.y) && is_box(window.x);
  plan.weights.rows = LnccWindow::halo(window.y);
  const auto fill = [](const std::vector<double>& weights, float* by_distance) {
    for (int i = LnccWindow::halo(weights); i >= 0; --i) {
      by_distance[i] = static_cast<float>(weights[LnccWindow::halo(weights) + i]);
    }
  };
  fill(window.z, plan.weights.z);
  fill(window.y, plan.weights.y);
  fill(window.x, plan.weights.x);

  MarchGrid& grid = plan.grid;
  grid.shape = shape;
  grid.pitch = ceil_div(shape.width, kColumns) * kColumns;
  grid.lanes = choose_lanes(shape, plan.halo);
  grid.y_tiles = ceil_div(shape.height, grid.rows());
  grid.x_tiles = ceil_div(shape.width, (grid.lanes - 2 * ceil_div(plan.halo, kColumns)) * kColumns);
  const int64_t columns = shape.volumes * grid.y_tiles * grid.x_tiles;
  const int64_t slots = static_cast<int64_t>(multiprocessors) * march_blocks_per_multiprocessor(plan.halo);
  grid.chunk = choose_chunk(shape.depth, plan.halo, columns, slots);
  grid.z_chunks = ceil_div(shape.depth, grid.chunk);
  return plan;
}

// The launches for images of T. Each type has a file of its own (march_float.cu), since there are a hundred kernels.
template <class T>
struct MarchLaunches {
  // map_count: 0, 3 or 5.
  static void forward(Launches& launches, const MarchPlan& plan, int map_count,
                      const CorrelationConstants<float>& constants, const T* pred, const T* target,
                      const CorrelationOutputs<float>& outputs);

  // map_count: how many maps forward made, 3 or 5.
  static void backward(Launches& launches, const MarchPlan& plan, int map_count, const float* maps,
                       const float* grad_map, const T* pred, const T* target, const GradientOutputs<T>& outputs);
};

}  // namespace cuda
}  // namespace usreg
