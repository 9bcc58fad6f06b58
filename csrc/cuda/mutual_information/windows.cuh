// Mutual information on GPUs: the images, where their values lie among the bins, and the windows there. The definition
// is in usreg_kernels/ops/mutual_information/reference.py.
//
// All of it is float64, whatever the dtype. A voxel adds windows to a joint histogram of 64-bit integers, whose sum has
// the same bits in any order: of a block in shared memory, where that has room for it, then of the item.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"
#include "cuda/support/reduction.cuh"

namespace usreg {
namespace cuda {

using InfoSum = unsigned long long;  // what CUDA's atomics take; two's complement

constexpr int kInfoThreads = 256;
constexpr int kInfoMargin = 2;                 // bins at each end of the range that a cubic B-spline needs
constexpr int kInfoMostBins = 256;             // MOST_BINS in usreg_kernels/ops/mutual_information/native.py
constexpr double kInfoLeastSigma = 0.05;       // LEAST_SIGMA there
constexpr double kInfoNegligible = 1e-13;      // of a gaussian's largest weight
constexpr size_t kInfoMostShared = 44 * 1024;  // bytes of a block's histogram

// Two images and their mask, cut into blocks. All are contiguous.
template <class T>
struct InfoImages {
  using R = Real<T>;
  const T* pred;    // (items, size)
  const T* target;  // (items, size)
  const R* mask;    // null, or (items, mask_size)
  int64_t items, size, mask_size;
  int bins;
  unsigned pieces;  // blocks per item

  int64_t blocks() const { return items * pieces; }
  __device__ unsigned item() const { return blockIdx.x / pieces; }
};

// A voxel of both images.
struct InfoVoxel {
  int64_t at;     // in a tensor
  double p, t;    // 0 where it is left out
  double weight;  // of the mask, or 1
  bool counts;
};

// Calls function(voxel) for this thread's voxels.
template <class T, class Function>
__device__ void for_each_voxel(const InfoImages<T>& images, const Function& function) {
  const int64_t item = images.item(), piece = blockIdx.x % images.pieces;
  const int64_t step = static_cast<int64_t>(images.pieces) * kInfoThreads;
  for (int64_t i = piece * kInfoThreads + threadIdx.x; i < images.size; i += step) {
    InfoVoxel voxel;
    voxel.at = item * images.size + i;
    voxel.weight = 1;
    if (images.mask != nullptr) voxel.weight = images.mask[item * images.mask_size + i % images.mask_size];
    voxel.counts = voxel.weight != 0;
    voxel.p = voxel.counts ? static_cast<double>(widen(images.pred[voxel.at])) : 0.0;
    voxel.t = voxel.counts ? static_cast<double>(widen(images.target[voxel.at])) : 0.0;
    function(voxel);
  }
}

__device__ inline bool is_finite_number(double value) { return value - value == 0; }

// ---- b-spline ------------------------------------------------------------------------------------------------------

// What forward finds of the ranges of both images, and saves for backward; two numbers per item follow.
enum InfoNumber : int {
  kPredLow,
  kPredHigh,
  kPredBin,
  kTargetLow,
  kTargetHigh,
  kTargetBin,
  kAtLow,   // voxels of pred at its lowest value
  kAtHigh,  // and at its highest
  kFinite,
  kEnds  // per item, the derivative by the lowest and by the highest value of pred
};

// Where a value lies: a bin, and how far above it, from 0 to 1.
struct InfoPlace {
  int bin;
  double above;
  bool moves;  // whether it follows the value

  __device__ InfoPlace(const InfoVoxel& voxel, double value, double lowest, double bin_size, int bins) {
    const double at = voxel.counts ? (value - lowest) / bin_size + kInfoMargin : kInfoMargin;
    const double last = bins - kInfoMargin - 1;
    moves = at <= last;
    const double bounded = moves ? at : last;  // of NaN, too
    bin = static_cast<int>(bounded);
    above = bounded - bin;
  }

  // How much of the box the bin above gets.
  __device__ double box() const { return above > 0.5 ? 1.0 : above == 0.5 ? 0.5 : 0.0; }
};

// The weights of the four bins around a place, or their derivatives.
__device__ inline void find_cubic(double t, double (&weights)[4]) {
  const double s = 1 - t;
  weights[0] = s * s * s / 6;
  weights[1] = 2.0 / 3 + t * t * (0.5 * t - 1);
  weights[2] = 2.0 / 3 + s * s * (0.5 * s - 1);
  weights[3] = t * t * t / 6;
}

__device__ inline void find_cubic_slopes(double t, double (&slopes)[4]) {
  const double s = 1 - t;
  slopes[0] = -0.5 * s * s;
  slopes[1] = t * (1.5 * t - 2);
  slopes[2] = -s * (1.5 * s - 2);
  slopes[3] = 0.5 * t * t;
}

// ---- gaussian ------------------------------------------------------------------------------------------------------

// The gaussians of a call. A window has the bins at most `reach` from the nearest.
struct InfoGaussian {
  int reach;
  double per_bin;  // 1 / sigma^2, sigma in bins
  double fall;     // exp(-per_bin): from one ratio of neighbouring weights to the next
};

// The window of a value. Weights follow from each other: a step from the nearest bin multiplies by a ratio, and the
// ratio by `fall`.
class InfoWindow {
 public:
  __device__ InfoWindow(double value, int bins, const InfoGaussian& gaussian) : bins_(bins), gaussian_(gaussian) {
    const double bounded = value > 0 ? (value < 1 ? value : 1.0) : 0.0;  // of NaN: 0
    const double at = bounded * (bins - 1);
    nearest_ = static_cast<int>(at + 0.5);
    const double above = at - nearest_;
    up_ = exp((above - 0.5) * gaussian.per_bin);
    down_ = exp((-above - 0.5) * gaussian.per_bin);
    double total = 0, moment = 0;
    for_each([&](int bin, double weight, double) {
      total += weight;
      moment += (bin - nearest_) * weight;
    });
    inverse_ = 1 / total;
    mean_ = moment / total;
  }

  // Calls function(bin, weight, slope) for its bins; slope: the derivative of the weight by the place.
  template <class Function>
  __device__ void for_each(const Function& function) const {
    call(function, 0, inverse_);
    double weight = inverse_, ratio = up_;
    for (int step = 1; step <= gaussian_.reach && nearest_ + step < bins_; ++step) {
      weight *= ratio;
      ratio *= gaussian_.fall;
      call(function, step, weight);
    }
    weight = inverse_;
    ratio = down_;
    for (int step = 1; step <= gaussian_.reach && nearest_ >= step; ++step) {
      weight *= ratio;
      ratio *= gaussian_.fall;
      call(function, -step, weight);
    }
  }

 private:
  template <class Function>
  __device__ void call(const Function& function, int step, double weight) const {
    function(nearest_ + step, weight, weight * (step - mean_) * gaussian_.per_bin);
  }

  int bins_, nearest_;
  const InfoGaussian& gaussian_;
  double up_, down_, inverse_ = 1, mean_ = 0;
};

}  // namespace cuda
}  // namespace usreg
