// MIND-SSC: what the ops (mind.cpp), the division of work (plan.cpp) and the kernels (kernel.inc) share. The formulas
// stand in usreg_kernels/ops/mind_ssc/reference.py.
//
// A march goes through the planes of a volume, and through the rows of each plane; volumes are (D, H, W), the axes
// z, y, x. No channel of the descriptor is kept but for a few rows or planes:
//
// 1. The planes of the images that are needed lie in a ring, as rows with the edge repeated on both sides (ring.inc).
// 2. For a row, the squared differences of all pairs are summed along z, straight from the images, and those of the
//    first pair are subtracted from the others. What is left of these lies in a ring of rows and is summed along y,
//    then along x. That gives what the distances D differ from the first one, times the size of the window, which
//    cancels in E / V (distances.inc).
// 3. The distances become the descriptor, and that the loss, and the slope of the loss by each distance
//    (descriptor.inc).
// 4. For the gradient, slopes of 2 radius + 1 planes lie in a ring, without those of the first pair: the sum of all is
//    0. Their window sums, times the differences, pull at
//    the neighbours of each voxel; the gradient of a plane is complete when the march is past its last neighbour
//    (gradient.inc).
//
// V is limited by its mean over the image: a march of its own, which stops after step 2, comes before.
//
// The arithmetic is in float64 for float64 images, else in float32. E is a difference of sums, and dividing it by V,
// which may be as small, would leave little of float32's digits; but what all pairs share is gone before the longest
// sums. Nothing is ever subtracted from a window sum. Each row has a sum of its own, in float64, and each voxel of the
// gradient adds its parts in the order of planes and rows: the result has the same bits for any number of threads.
#pragma once

#include <cstdint>

namespace usreg {
namespace mind {

constexpr int kNeighbours = 6;  // -z, +z, -y, +y, -x, +x
constexpr int kMostPairs = 12;
constexpr int kPairsOfPlane = 4;                  // the last ones, in 2-D
constexpr double kLowest = 1e-3, kHighest = 1e3;  // limits of V, as multiples of its mean

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool holds(int64_t index) const { return begin <= index && index < end; }
};

// The part of [0, size) that lies at most `reach` from a range.
inline Range widened(Range range, int64_t reach, int64_t size) {
  return {range.begin < reach ? 0 : range.begin - reach, range.end + reach > size ? size : range.end + reach};
}

// Volumes are of the inputs' type T; losses, masks, descriptors and their gradients are of Real<T>.
struct Problem {
  int pairs;          // kMostPairs or kPairsOfPlane
  int64_t volumes;    // batch * channels
  int64_t size[3];    // z, y, x; 1 for an axis that is not there
  int64_t radius[3];  // of the window; 0 along such an axis
  int64_t dilation[3];
  int images;             // 1, or 2 for the loss
  const void* image[2];   // (volumes, z, y, x)
  const double* mean[2];  // (volumes), the mean of V; null to sum V of the first image
  const void* mask;       // weighs the loss; null for 1
  int64_t channels_per_mask;
  void* descriptor;             // where that goes, (volumes, pairs, z, y, x); null for the loss
  const void* descriptor_grad;  // the incoming gradient of the descriptor
  void* loss_map;               // where the loss of each voxel goes; null to sum it
  const void* grad_map;         // the incoming gradient of each voxel's loss; null for 1
  double scale;                 // what multiplies the incoming gradient
  void* gradient[2];            // of each image; null where it is not needed
  bool gradient_of_input_type;  // else of Real<T>

  bool has_gradient() const { return gradient[0] != nullptr || gradient[1] != nullptr; }
  int64_t voxels() const { return size[0] * size[1] * size[2]; }
  int64_t voxel(int64_t z, int64_t y) const { return (z * size[1] + y) * size[2]; }
  // How far beyond its own planes or rows a task needs slopes: for the pulls of neighbours, and their window sums.
  int64_t slopes_reach(int axis) const { return has_gradient() ? radius[axis] + dilation[axis] : 0; }
};

// A part of a volume.
struct Task {
  int64_t volume;
  Range planes, rows;
};

// How volumes are cut into tasks.
struct Plan {
  // bytes: of a number that the kernels compute with.
  Plan(const Problem& problem, int64_t threads, int64_t bytes);
  Task task(const Problem& problem, int64_t index) const;

  int64_t z_parts = 1, y_parts = 1, count = 0;
  int64_t most_rows = 0;  // of a task
};

// Where everything lies in a task's memory, in numbers.
struct Layout {
  Layout(const Problem& problem, int64_t most_rows, int64_t lanes);

  int64_t width;         // of a row, in whole vectors
  int64_t margin;        // before and behind a row whose neighbours are read
  int64_t stride;        // of such a row
  int64_t image_planes;  // in the ring of planes
  int64_t image_rows;
  int64_t ring_rows;     // in rings of rows
  int64_t slope_planes;  // in the ring of slopes
  int64_t slope_rows;
  int64_t gradient_planes;  // in the ring of unfinished planes of the gradient
  int64_t gradient_rows;
  int64_t block;  // (pairs - 1) * width

  int64_t images, row_sums, distances, values, row, weights, mask;
  int64_t slopes, slope_sums, lines, pulls, gradients;
  int64_t total;
};

}  // namespace mind
}  // namespace usreg
