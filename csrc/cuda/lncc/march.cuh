// Local normalised cross-correlation on GPUs by a march along z that holds all window sums in registers.
//
// A block owns a tile of rows, of which a group of lanes takes one, each lane two columns wide, and takes plane after
// plane. Each plane is summed along y by loading the neighbouring rows, which the caches hold; along x by exchanging
// partial sums within a warp; and along z by adding it to the unfinished sums of all planes whose windows reach it.
// Nothing is ever subtracted: running sums leave a residue after bright tissue that is as large as smooth_dr.
#pragma once

#include "cuda/lncc/march_sums.cuh"
#include "cuda/lncc/problem.cuh"

namespace usreg {
namespace cuda {

constexpr int kMarchThreads = 128;
constexpr int kCorrelationSums = 5;  // of p, t, p p, t t and p t

// Blocks per multiprocessor, which hold the compiler to 128, 168 or 255 registers: as few as it takes not to spill.
template <int kHalo, int kMaps>
constexpr int kMarchBlocks = kHalo <= 3                ? 4
                             : kHalo == 4 && kMaps < 5 ? 3
                                                       : 2;

// How volumes are cut into blocks' tiles. Rows of images are `pitch` elements apart, a multiple of kColumns, with zeros
// beyond the width; in-plane offsets fit 32 bits.
struct MarchGrid {
  LnccShape shape;
  int pitch;
  int lanes;  // per row, a power of two up to a warp
  int y_tiles, x_tiles, z_chunks;
  int chunk;  // planes

  __host__ __device__ int rows() const { return kMarchThreads / lanes; }
  __host__ __device__ int64_t blocks() const { return shape.volumes * z_chunks * x_tiles * y_tiles; }
};

// The place of a thread. Lanes at both ends of a row's group serve only their neighbours.
template <int kHalo>
struct MarchPlace {
  static constexpr int kHaloLanes = ceil_div(kHalo, kColumns);

  int64_t volume;
  int begin, end;  // planes
  int y, x;        // x: the first column, which may lie outside
  bool owns;       // whether it has voxels of its own

  // Blocks that follow on each other are neighbours along y: they share rows in the caches.
  __device__ explicit MarchPlace(const MarchGrid& grid) {
    unsigned block = blockIdx.x;
    const auto take = [&](unsigned count) {
      const unsigned index = block % count;
      block /= count;
      return static_cast<int>(index);
    };
    const int lane = threadIdx.x % grid.lanes;
    y = take(grid.y_tiles) * grid.rows() + threadIdx.x / grid.lanes;
    x = (take(grid.x_tiles) * (grid.lanes - 2 * kHaloLanes) + lane - kHaloLanes) * kColumns;
    begin = take(grid.z_chunks) * grid.chunk;
    volume = block;
    end = begin + grid.chunk < grid.shape.depth ? begin + grid.chunk : grid.shape.depth;
    owns = lane >= kHaloLanes && lane < grid.lanes - kHaloLanes && x < grid.shape.width && y < grid.shape.height;
  }

  // The first plane that the tile's windows reach.
  __device__ int first_plane() const { return begin > kHalo ? begin - kHalo : 0; }

  __device__ int64_t plane_index(const LnccShape& shape, int z) const { return volume * shape.depth + z; }
};

// Calls function(row, exists, weight) for the rows of a window, from the first to the last, counted from its own.
template <int kHalo, bool kBox, class Function>
__device__ __forceinline__ void for_each_row(int y, int height, const MarchWeights& weights, const Function& function) {
  const auto exists = [&](int row) { return static_cast<unsigned>(y + row) < static_cast<unsigned>(height); };
  if constexpr (kBox) {
    [[maybe_unused]] constexpr int kAtOnce = kHalo < 7 ? 2 * kHalo + 1 : 1;  // more rows would not fit the registers
#pragma unroll kAtOnce
    for (int row = -kHalo; row <= kHalo; ++row) function(row, exists(row), 1.0f);
  } else {
#pragma unroll 1
    for (int row = -weights.rows; row <= weights.rows; ++row) {
      function(row, exists(row), weights.y[row < 0 ? -row : row]);
    }
  }
}

// Takes the planes that a tile's windows reach. Steps is a march: read_plane adds a plane to the sums and goes on to
// the next one, emit uses the finished sums of a plane.
template <int kHalo, bool kBox, int kSums, class Steps>
__device__ __forceinline__ void march(const MarchGrid& grid, const MarchWeights& weights,
                                      const MarchPlace<kHalo>& place, Steps& steps) {
  UnfinishedSums<kHalo, kBox> unfinished[kSums];
  int z = place.first_plane();
  const int last = place.end + kHalo < grid.shape.depth ? place.end + kHalo : grid.shape.depth;
  for (; z < last; ++z) {
    float sums[kSums][kColumns] = {};
    steps.read_plane(sums);
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      SumAlongX<kHalo, kBox>::run(sums[i], weights, grid.lanes);
      unfinished[i].add(sums[i], weights);
    }
    if (z >= place.begin + kHalo) steps.emit(z - kHalo, sums);
  }
  for (; z < place.end + kHalo; ++z) {  // windows that reach beyond the last plane
    float sums[kSums][kColumns] = {};
#pragma unroll
    for (int i = 0; i < kSums; ++i) unfinished[i].add(sums[i], weights);
    if (z >= place.begin + kHalo) steps.emit(z - kHalo, sums);
  }
}

}  // namespace cuda
}  // namespace usreg
