// The gradients of mutual information: a voxel's windows, and the derivatives of one, on the derivative by the
// histogram, slopes (items, bins, bins).
#pragma once

#include <limits>

#include "cuda/mutual_information/windows.cuh"

namespace usreg {
namespace cuda {

// The incoming gradient of an item's loss.
template <class R>
struct InfoIncoming {
  const R* grad;  // of each item, or one for all
  bool per_item;
  double share;  // what multiplies it

  __device__ double of(int64_t item) const { return static_cast<double>(grad[per_item ? item : 0]) * share; }
};

// The derivative by the place of pred, b-spline, and where this lies between the ends of the range, from 0 to 1.
struct InfoSlope {
  double slope, along;

  __device__ InfoSlope(const InfoVoxel& voxel, const double* table, const double* numbers, int bins) {
    const InfoPlace a(voxel, voxel.p, numbers[kPredLow], numbers[kPredBin], bins);
    const InfoPlace b(voxel, voxel.t, numbers[kTargetLow], numbers[kTargetBin], bins);
    double slopes[4];
    find_cubic_slopes(a.above, slopes);
    const double share = b.box();
    const double* const first = table + (a.bin - 1) * bins + b.bin;
    slope = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double* const entry = first + i * bins;
      slope += slopes[i] * ((1 - share) * entry[0] + share * entry[1]);
    }
    if (!a.moves) slope = 0;
    along = (a.bin - kInfoMargin + a.above) / (bins - 2 * kInfoMargin);
  }
};

// The derivatives of each item's loss by the lowest and by the highest value of pred: sums, one per block and number,
// to partials (2 * items, pieces).
template <class T>
__global__ void __launch_bounds__(kInfoThreads)
    sum_ends(const __grid_constant__ InfoImages<T> images, const double* slopes, const double* numbers,
             double* partials) {
  const int64_t item = images.item();
  const double* const table = slopes + item * images.bins * images.bins;
  double lowest = 0, highest = 0;
  for_each_voxel(images, [&](const InfoVoxel& voxel) {
    if (!voxel.counts) return;
    const InfoSlope found(voxel, table, numbers, images.bins);
    const double slope = found.slope * voxel.weight / numbers[kPredBin];
    lowest += slope * (found.along - 1);
    highest -= slope * found.along;
  });
  lowest = block_sum(lowest);
  highest = block_sum(highest);
  if (threadIdx.x != 0) return;
  const unsigned piece = blockIdx.x % images.pieces;
  partials[2 * item * images.pieces + piece] = lowest;
  partials[(2 * item + 1) * images.pieces + piece] = highest;
}

// ends (2): what each voxel at the lowest and at the highest value of pred gets besides; by one block.
template <class R>
__global__ void __launch_bounds__(kInfoThreads)
    finish_ends(const double* numbers, int64_t items, const __grid_constant__ InfoIncoming<R> incoming, double* ends) {
  double low = 0, high = 0;
  for (int64_t i = threadIdx.x; i < items; i += kInfoThreads) {
    low += incoming.of(i) * numbers[kEnds + 2 * i];
    high += incoming.of(i) * numbers[kEnds + 2 * i + 1];
  }
  low = block_sum(low);
  high = block_sum(high);
  if (threadIdx.x != 0) return;
  ends[0] = low / (numbers[kAtLow] > 1 ? numbers[kAtLow] : 1.0);
  ends[1] = high / (numbers[kAtHigh] > 1 ? numbers[kAtHigh] : 1.0);
}

// The gradient to pred, b-spline.
template <class T>
__global__ void __launch_bounds__(kInfoThreads)
    write_bspline_gradient(const __grid_constant__ InfoImages<T> images, const double* slopes, const double* numbers,
                           const __grid_constant__ InfoIncoming<Real<T>> incoming, const double* ends, T* gradient) {
  const int64_t item = images.item();
  const double* const table = slopes + item * images.bins * images.bins;
  const double factor = incoming.of(item) / numbers[kPredBin];
  for_each_voxel(images, [&](const InfoVoxel& voxel) {
    double found = 0;
    if (numbers[kFinite] == 0) {
      found = std::numeric_limits<double>::quiet_NaN();
    } else if (voxel.counts) {
      found = InfoSlope(voxel, table, numbers, images.bins).slope * voxel.weight * factor;
      if (voxel.p == numbers[kPredLow]) found += ends[0];
      if (voxel.p == numbers[kPredHigh]) found += ends[1];
    }
    gradient[voxel.at] = narrow<T>(static_cast<Real<T>>(found));
  });
}

// The gradients, gaussian, each null where it is not needed.
template <class T>
__global__ void __launch_bounds__(kInfoThreads)
    write_gaussian_gradients(const __grid_constant__ InfoImages<T> images,
                             const __grid_constant__ InfoGaussian gaussian, const double* slopes,
                             const __grid_constant__ InfoIncoming<Real<T>> incoming, T* pred_grad, T* target_grad) {
  const int64_t item = images.item();
  const double* const table = slopes + item * images.bins * images.bins;
  const double factor = incoming.of(item) * (images.bins - 1);
  for_each_voxel(images, [&](const InfoVoxel& voxel) {
    double to_pred = 0, to_target = 0;
    if (voxel.counts) {
      const InfoWindow a(voxel.p, images.bins, gaussian), b(voxel.t, images.bins, gaussian);
      a.for_each([&](int row, double weight, double slope) {
        double looked_up = 0, by_target = 0;
        b.for_each([&](int column, double other, double other_slope) {
          const double entry = table[row * images.bins + column];
          looked_up += other * entry;
          by_target += other_slope * entry;
        });
        to_pred += slope * looked_up;
        to_target += weight * by_target;
      });
    }
    const auto write = [&](T* gradient, double value, double found) {
      if (gradient == nullptr) return;
      const bool moves = value >= 0 && value <= 1;
      found = !voxel.counts ? 0.0 : moves ? factor * voxel.weight * found : value - value;
      gradient[voxel.at] = narrow<T>(static_cast<Real<T>>(found));
    };
    write(pred_grad, voxel.p, to_pred);
    write(target_grad, voxel.t, to_target);
  });
}

}  // namespace cuda
}  // namespace usreg
