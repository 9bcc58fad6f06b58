// How the CPU kernels compute mutual information. The definition stands in
// usreg_kernels/ops/mutual_information/reference.py.
//
// Forward adds the outer product of two windows per voxel to a joint histogram, one per task, a fixed part of an item's
// voxels; the histograms of an item's tasks are added in their order, so that the result has the same bits for any
// number of threads. Backward looks the derivative by the histogram up, and multiplies the windows in again.
//
// b-spline. A voxel has four bins of pred, which a cubic polynomial weighs, and one of target. The histogram has a cell
// of four sums for each bin of target and each interval between two bins of pred: a voxel adds one vector to one cell.
// A value of target between two bins has a row of cells of its own, half of which goes to either bin at the end. The
// cells also tell the sums of powers of the place within an interval, and with them the derivative by the ends of the
// range of values: no further pass over the voxels is needed.
//
// gaussian. Windows reach as far as they are more than kNegligible of their largest weight. A voxel adds kRows short
// rows. There is a histogram for each column modulo the lanes of a vector, so that rows begin at whole vectors: what
// was just written can only be read again at once from the same place.
#pragma once

#include <cstdint>

namespace usreg {
namespace mutual_information {

constexpr int64_t kMargin = 2;       // bins at each end of the range that a cubic B-spline needs
constexpr int64_t kMostBins = 256;   // LARGEST_IN_CPP in usreg_kernels/ops/mutual_information/native.py
constexpr int64_t kTile = 512;       // voxels whose places are in the first-level cache at once
constexpr int64_t kWindowTile = 64;  // the same with windows
constexpr double kNegligible = 1e-13;
constexpr double kLeastSigma = 0.05;  // LEAST_SIGMA there: e^(1 / sigma^2) is finite

// The values of an image that count.
struct Range {
  double lowest, highest;
  bool is_finite;  // whether all of them are
};

// Places of an image's values among the bins, b-spline.
struct Axis {
  double lowest, highest, bin_size;
};

// The cells of a b-spline histogram of one item.
struct Cells {
  explicit Cells(int64_t bins) : bins(bins) {}

  int64_t bins;

  // Intervals between two of the inner bins of pred; the last bin, as an interval without length; and that bin once
  // more for values beyond it, which it does not move with.
  int64_t columns() const { return bins - 2 * kMargin + 1; }
  int64_t rows() const { return 2 * bins; }  // bins of target, and halfway between them
  int64_t count() const { return rows() * columns(); }
  int64_t still() const { return columns() - 1; }
  // The bin of pred that a column's interval begins at.
  int64_t first_bin(int64_t column) const { return column == still() ? column + kMargin - 1 : column + kMargin; }
};

// How many voxels of pred lie at the ends of its range, and the sum of the weights.
struct Tally {
  double at_lowest = 0, at_highest = 0, weight = 0;
};

// The windows of a gaussian and its histogram. Rows and columns have reach - 1 more bins in front, and the rest of a
// window behind.
struct Gaussian {
  int64_t bins;
  int64_t reach;       // a window has the bins at -reach + 1, ..., reach from the one below the value
  double per_bin;      // 1 / sigma^2, sigma in bins
  const double* fall;  // exp(-j^2 / (2 sigma^2)) for j = 0, ..., reach

  int64_t taps() const { return 2 * reach; }
};

// A voxel's windows as a kernel makes them.
struct Windows {
  double* weights;  // (taps, kWindowTile), sums to the voxel's weight, or to 1
  double* slopes;   // the same, their derivative; null where it is not needed
  int32_t* first;   // (kWindowTile), the bin below the value
};

}  // namespace mutual_information
}  // namespace usreg
