// The loss of mutual information: the range of values, joint histograms, and their score.
#pragma once

#include <cstring>
#include <limits>

#include "common/mutual_information_score.h"
#include "cuda/mutual_information/windows.cuh"

namespace usreg {
namespace cuda {

// The integers of a call, which begin at 0.
struct InfoState {
  // Of the batch: keys of values, which keep their order; whether one is not finite; and counts of voxels.
  enum Number : int {
    kPredHighest,
    kPredLowest,
    kTargetHighest,
    kTargetLowest,
    kStrange,
    kAtLowest,
    kAtHighest,
    kItems
  };
  // Of each item: the bits of its largest weight, the sum of its weights, and whether anything is not finite.
  enum PerItem : int { kLargest, kWeight, kItemStrange, kPerItem };

  InfoSum* numbers;     // (kItems)
  InfoSum* items;       // (items, kPerItem)
  InfoSum* histograms;  // (items, bins, bins)

  static int64_t count(int64_t items, int64_t bins) { return kItems + items * (kPerItem + bins * bins); }
  InfoState(InfoSum* memory, int64_t item_count)
      : numbers(memory), items(memory + kItems), histograms(memory + kItems + item_count * kPerItem) {}
};

__device__ inline InfoSum bits_of_number(double value) {
  InfoSum bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

__device__ inline double number_of_bits(InfoSum bits) {
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Integers in the order of the numbers, all above 0.
__device__ inline InfoSum key_of(double value) {
  constexpr InfoSum kSign = InfoSum{1} << 63;
  const InfoSum bits = bits_of_number(value);
  return bits & kSign ? ~bits : bits | kSign;
}

__device__ inline double value_of(InfoSum key) {
  constexpr InfoSum kSign = InfoSum{1} << 63;
  return number_of_bits(key & kSign ? key ^ kSign : ~key);
}

__device__ inline void join_maximum(InfoSum* target, InfoSum value) {
  value = block_max(value);
  if (threadIdx.x == 0 && value != 0) atomicMax(target, value);
}

__device__ inline void join_sum(InfoSum* target, InfoSum value) {
  value = block_sum(value);
  if (threadIdx.x == 0 && value != 0) atomicAdd(target, value);
}

// The ranges of both images' values, with kRange, and the largest weight of each item.
template <bool kRange, class T>
__global__ void __launch_bounds__(kInfoThreads)
    measure_images(const __grid_constant__ InfoImages<T> images, const __grid_constant__ InfoState state) {
  [[maybe_unused]] InfoSum keys[4] = {}, strange = 0;
  InfoSum largest = 0, item_strange = 0;
  for_each_voxel(images, [&](const InfoVoxel& voxel) {
    const bool is_weight = is_finite_number(voxel.weight);
    if (!is_weight) item_strange = 1;
    const InfoSum bits = is_weight ? bits_of_number(fabs(voxel.weight)) : 0;
    if (bits > largest) largest = bits;
    if constexpr (kRange) {
      if (!voxel.counts) return;
      const double values[4] = {voxel.p, -voxel.p, voxel.t, -voxel.t};
      if (!is_finite_number(voxel.p) || !is_finite_number(voxel.t)) strange = 1;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const InfoSum key = is_finite_number(values[i]) ? key_of(values[i]) : 0;
        if (key > keys[i]) keys[i] = key;
      }
    }
  });
  InfoSum* const own = state.items + images.item() * InfoState::kPerItem;
  join_maximum(own + InfoState::kLargest, largest);
  join_maximum(own + InfoState::kItemStrange, item_strange);
  if constexpr (kRange) {
    for (int i = 0; i < 4; ++i) join_maximum(state.numbers + i, keys[i]);
    join_maximum(state.numbers + InfoState::kStrange, strange);
  }
}

// What makes weights of an item integers: no sum of 2^count_bits of them has more than 62 bits.
__device__ inline double info_scale(const InfoState& state, unsigned item, int count_bits, bool has_mask) {
  const InfoSum largest = has_mask ? state.items[item * InfoState::kPerItem + InfoState::kLargest] : 0;
  const int exponent = largest == 0 ? 0 : static_cast<int>(largest >> 52) - 1023;  // of a power of two not above it
  const int wanted = 61 - count_bits - exponent;
  return ldexp(1.0, wanted < 1000 ? wanted : 1000);
}

__device__ inline InfoSum to_units(double weight) { return static_cast<InfoSum>(llrint(weight)); }

// A histogram that a block adds to. In shared memory a sum lies in two halves, since only 32 bits add up at once there.
template <bool kShared>
class InfoHistogram;

template <>
class InfoHistogram<false> {
 public:
  __device__ InfoHistogram(InfoSum* sums, int) : sums_(sums) {}
  __device__ void add(int entry, InfoSum units) const {
    if (units != 0) atomicAdd(sums_ + entry, units);
  }
  __device__ void finish() const {}

 private:
  InfoSum* sums_;
};

template <>
class InfoHistogram<true> {
 public:
  __device__ InfoHistogram(InfoSum* sums, int entries) : sums_(sums), entries_(entries) {
    low_ = reinterpret_cast<unsigned*>(block_memory);
    high_ = low_ + entries;
    for (int i = threadIdx.x; i < 2 * entries; i += kInfoThreads) low_[i] = 0;
    __syncthreads();
  }
  __device__ void add(int entry, InfoSum units) const {
    const auto low = static_cast<unsigned>(units);
    if (low != 0) {
      const unsigned before = atomicAdd(low_ + entry, low);
      if (before + low < low) units += InfoSum{1} << 32;
    }
    const auto high = static_cast<unsigned>(units >> 32);
    if (high != 0) atomicAdd(high_ + entry, high);
  }
  // Adds the block's histogram to the item's.
  __device__ void finish() const {
    __syncthreads();
    for (int i = threadIdx.x; i < entries_; i += kInfoThreads) {
      const InfoSum sum = static_cast<InfoSum>(high_[i]) << 32 | low_[i];
      if (sum != 0) atomicAdd(sums_ + i, sum);
    }
    __syncthreads();  // the memory serves other sums
  }

 private:
  InfoSum* sums_;
  int entries_;
  unsigned *low_, *high_;
};

// Adds the images' windows, b-spline, to the histograms. numbers: of the ranges.
template <bool kShared, class T>
__global__ void __launch_bounds__(kInfoThreads)
    count_bspline(const __grid_constant__ InfoImages<T> images, const __grid_constant__ InfoState state, int count_bits,
                  const double* numbers) {
  if (numbers[kFinite] == 0) return;
  const unsigned item = images.item();
  const int bins = images.bins;
  const double scale = info_scale(state, item, count_bits, images.mask != nullptr);
  const InfoHistogram<kShared> histogram(state.histograms + static_cast<int64_t>(item) * bins * bins, bins * bins);
  const double pred_low = numbers[kPredLow], pred_high = numbers[kPredHigh], pred_bin = numbers[kPredBin];
  const double target_low = numbers[kTargetLow], target_bin = numbers[kTargetBin];
  InfoSum at_lowest = 0, at_highest = 0, total = 0;
  for_each_voxel(images, [&](const InfoVoxel& voxel) {
    if (!voxel.counts) return;
    at_lowest += voxel.p == pred_low ? 1 : 0;
    at_highest += voxel.p == pred_high ? 1 : 0;
    total += to_units(voxel.weight * scale);
    const InfoPlace a(voxel, voxel.p, pred_low, pred_bin, bins), b(voxel, voxel.t, target_low, target_bin, bins);
    double weights[4];
    find_cubic(a.above, weights);
    const double share = b.box();
    const int first = (a.bin - 1) * bins + b.bin;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double weight = weights[i] * voxel.weight * scale;
      if (share < 1) histogram.add(first + i * bins, to_units((1 - share) * weight));
      if (share > 0) histogram.add(first + i * bins + 1, to_units(share * weight));
    }
  });
  histogram.finish();
  join_sum(state.numbers + InfoState::kAtLowest, at_lowest);
  join_sum(state.numbers + InfoState::kAtHighest, at_highest);
  join_sum(state.items + item * InfoState::kPerItem + InfoState::kWeight, total);
}

// Adds the images' windows, gaussian, to the histograms.
template <bool kShared, class T>
__global__ void __launch_bounds__(kInfoThreads)
    count_gaussian(const __grid_constant__ InfoImages<T> images, const __grid_constant__ InfoState state,
                   int count_bits, const __grid_constant__ InfoGaussian gaussian) {
  const unsigned item = images.item();
  const int bins = images.bins;
  const double scale = info_scale(state, item, count_bits, images.mask != nullptr);
  const InfoHistogram<kShared> histogram(state.histograms + static_cast<int64_t>(item) * bins * bins, bins * bins);
  InfoSum total = 0, strange = 0;
  for_each_voxel(images, [&](const InfoVoxel& voxel) {
    if (!voxel.counts) return;
    if (!is_finite_number(voxel.p) || !is_finite_number(voxel.t)) strange = 1;
    total += to_units(voxel.weight * scale);
    const InfoWindow a(voxel.p, bins, gaussian), b(voxel.t, bins, gaussian);
    a.for_each([&](int row, double weight, double) {
      const double scaled = weight * voxel.weight * scale;
      b.for_each(
          [&](int column, double other, double) { histogram.add(row * bins + column, to_units(scaled * other)); });
    });
  });
  histogram.finish();
  InfoSum* const own = state.items + item * InfoState::kPerItem;
  join_sum(own + InfoState::kWeight, total);
  join_maximum(own + InfoState::kItemStrange, strange);
}

// How a histogram becomes a loss.
struct InfoScore {
  bool normalized, has_mask;
  double smooth_nr, smooth_dr;
  int64_t size;  // voxels of an item
  int count_bits;
};

constexpr size_t info_score_bytes(int bins) {
  return block_sum_bytes<double>(kInfoThreads) + 4 * sizeof(double) * static_cast<size_t>(bins);
}

// The loss of an item per block, to values, and its derivative by each entry of the histogram to slopes, if that is not
// null. joint: room for (items, bins, bins) numbers, which may be those of slopes.
//
// A thread takes a row of the distribution, and then a column.
template <class R>
__global__ void __launch_bounds__(kInfoThreads)
    score_histograms(const __grid_constant__ InfoState state, int bins, const __grid_constant__ InfoScore how,
                     double* joint, R* values, double* slopes, double* numbers) {
  const unsigned item = blockIdx.x;
  const int i = static_cast<int>(threadIdx.x), entries = bins * bins;
  const double scale = info_scale(state, item, how.count_bits, how.has_mask);
  const InfoSum* const own = state.items + item * InfoState::kPerItem;
  double count = static_cast<double>(how.size);
  if (how.has_mask) {
    const double weight = static_cast<double>(static_cast<int64_t>(own[InfoState::kWeight])) / scale;
    count = weight == 0 ? 1 : weight;
  }
  const bool strange = state.numbers[InfoState::kStrange] != 0 || own[InfoState::kItemStrange] != 0 ||
                       (numbers != nullptr && numbers[kFinite] == 0);
  const InfoSum* const sums = state.histograms + static_cast<int64_t>(item) * entries;
  double* const p = joint + static_cast<int64_t>(item) * entries;
  for (int entry = i; entry < entries; entry += kInfoThreads) {
    p[entry] = strange ? std::numeric_limits<double>::quiet_NaN()
                       : static_cast<double>(static_cast<int64_t>(sums[entry])) / scale / count;
  }
  if (item == 0 && i == 0 && numbers != nullptr) {
    numbers[kAtLow] = static_cast<double>(state.numbers[InfoState::kAtLowest]);
    numbers[kAtHigh] = static_cast<double>(state.numbers[InfoState::kAtHighest]);
  }
  double* const p_a = reinterpret_cast<double*>(block_memory + block_sum_bytes<double>(kInfoThreads));
  double *const p_b = p_a + bins, *const through_a = p_b + bins, *const through_b = through_a + bins;
  __syncthreads();
  double own_entropy = 0, sum_a = 0, sum_b = 0;
  for (int j = 0; i < bins && j < bins; ++j) {
    sum_a += p[i * bins + j];
    sum_b += p[j * bins + i];
    own_entropy += entropy_term(p[i * bins + j]);
  }
  if (i < bins) {
    p_a[i] = sum_a;
    p_b[i] = sum_b;
  }
  __syncthreads();
  double* const target = slopes == nullptr ? nullptr : slopes + static_cast<int64_t>(item) * entries;
  if (how.normalized) {
    const double entropies = i < bins ? entropy_term(sum_a) + entropy_term(sum_b) : 0;
    const double above = block_sum(entropies) + how.smooth_nr, below = block_sum(own_entropy) + how.smooth_dr;
    if (i == 0) {
      through_a[0] = above / below;
      through_a[1] = below;
      values[item] = static_cast<R>(-above / below);
    }
    __syncthreads();
    for (int entry = i; target != nullptr && entry < entries; entry += kInfoThreads) {
      const double by_own = entropy_slope(p[entry]) * through_a[0];
      target[entry] =
          (by_own - entropy_slope(p_a[entry / bins]) - entropy_slope(p_b[entry % bins])) / through_a[1] / count;
    }
    return;
  }
  double total = 0;
  if (i < bins) {
    double by_a = 0, by_b = 0;
    for (int j = 0; j < bins; ++j) {
      const InfoTerm row(p[i * bins + j], p_a[i], p_b[j], how.smooth_nr, how.smooth_dr);
      total += row.value;
      by_a += row.by_product * p_b[j];
      const InfoTerm column(p[j * bins + i], p_a[j], p_b[i], how.smooth_nr, how.smooth_dr);
      by_b += column.by_product * p_a[j];
    }
    through_a[i] = by_a;
    through_b[i] = by_b;
  }
  total = block_sum(total);
  if (i == 0) values[item] = static_cast<R>(-total);
  for (int entry = i; target != nullptr && entry < entries; entry += kInfoThreads) {
    const int row = entry / bins, column = entry % bins;
    const InfoTerm term(p[entry], p_a[row], p_b[column], how.smooth_nr, how.smooth_dr);
    target[entry] = (through_a[row] + through_b[column] - term.own) / count;
  }
}

}  // namespace cuda
}  // namespace usreg
