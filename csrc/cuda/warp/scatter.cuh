// The gradient to the image: a sum over all output voxels that look at a voxel. Floating-point atomics would add in
// another order on every run. So gradients are scaled by a power of two and added as 64-bit integers, whose sum has the
// same bits in any order: one kernel finds the largest incoming gradient, from which the power follows, one adds, one
// converts.
//
// The last three bits of a sum are no part of the number: they say which kinds of incoming gradients that are not
// finite have reached the voxel. Shares are multiples of 8 and do not touch them. A double has a second sum, of what is
// left below the first one's unit.
#pragma once

#include "cuda/warp/place.cuh"

namespace usreg {
namespace cuda {

using Sum = unsigned long long;  // what CUDA's atomics take; two's complement

constexpr Sum kInfinite = 1, kMinusInfinite = 2, kNotANumber = 4, kKinds = 7;
constexpr int kMeasureThreads = 256;
constexpr int kMeasuresAtOnce = 8;

template <class R>
constexpr int kWords = sizeof(R) == 8 ? 2 : 1;  // sums per voxel

// The bits of a number, and a power of two by them.
template <class R>
struct Bits;

template <>
struct Bits<float> {
  static constexpr int kBias = 127, kFraction = 23;
  static __device__ Sum of(float value) { return float_bits(value); }
  static __device__ float power_of_two(int exponent) {
    return float_from_bits(static_cast<uint32_t>(exponent + kBias) << kFraction);
  }
};

template <>
struct Bits<double> {
  static constexpr int kBias = 1023, kFraction = 52;
  static __device__ Sum of(double value) {
    Sum bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
  }
  static __device__ double power_of_two(int exponent) {
    const Sum bits = static_cast<Sum>(exponent + kBias) << kFraction;
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

// state[0]: the bits of the largest finite magnitude; state[1]: 1 if any value is not finite. Both start at 0.
template <class R>
__global__ void __launch_bounds__(kMeasureThreads) warp_measure(const R* grad_output, int64_t count, Sum* state) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kMeasureThreads * kMeasuresAtOnce + threadIdx.x;
  R largest = 0;
  int any = 0;
#pragma unroll
  for (int i = 0; i < kMeasuresAtOnce; ++i) {
    const int64_t index = first + i * kMeasureThreads;
    R magnitude = index < count ? grad_output[index] : R(0);
    magnitude = magnitude < 0 ? -magnitude : magnitude;
    if (!is_finite(magnitude)) any = 1;
    if (is_finite(magnitude) && magnitude > largest) largest = magnitude;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const R other = __shfl_down_sync(kAll, largest, step);
    largest = other > largest ? other : largest;
    any |= __shfl_down_sync(kAll, any, step);
  }
  if (threadIdx.x % kWarp != 0) return;
  atomicMax(state, Bits<R>::of(largest));  // in the order of the magnitudes
  if (any) atomicMax(state + 1, Sum{1});
}

// By which powers of two gradients become integers.
struct Scale {
  int exponent;  // of the first sum: no sum of 2^count_bits gradients has more than 62 bits
  int lower;     // of the second one, relative to the first: no sum of 2^count_bits rests below 8 has more than 62

  // The largest magnitude lies below 2^(biased exponent - bias + 1).
  template <class R>
  static __device__ Scale of(const Sum* state, int count_bits) {
    const int biased = static_cast<int>(state[0] >> Bits<R>::kFraction);
    return {62 - count_bits - (biased - Bits<R>::kBias + 1), 59 - count_bits};
  }
};

// value * 2^exponent, in two steps, since the power may be beyond R.
template <class R>
__device__ inline R scale_by(R value, int exponent) {
  const int half = exponent / 2;
  return value * Bits<R>::power_of_two(half) * Bits<R>::power_of_two(exponent - half);
}

// Adds a share of a gradient to a voxel; count: of all voxels.
template <class R>
__device__ inline void add_share(Sum* voxel, int64_t count, R share, int lower) {
  const int64_t units = static_cast<int64_t>(share) & -8;
  if (units != 0) atomicAdd(voxel, static_cast<Sum>(units));
  if constexpr (kWords<R> == 2) {
    const auto rest = static_cast<int64_t>((share - static_cast<R>(units)) * Bits<R>::power_of_two(lower));
    if (rest != 0) atomicAdd(voxel + count, static_cast<Sum>(rest));
  }
}

template <class R>
__device__ inline Sum kind_of(R value) {
  if (is_finite(value)) return 0;
  return value != value ? kNotANumber : value > 0 ? kInfinite : kMinusInfinite;
}

// Adds the output voxels' shares to sums: (kWords, batch, channels, image).
template <int kDims, bool kZeros, class T>
__global__ void __launch_bounds__(kWarpThreads)
    warp_scatter(const __grid_constant__ WarpProblem<T> problem, const Real<T>* grad_output, int count_bits, Sum* sums,
                 const Sum* state) {
  using R = Real<T>;
  const OutputVoxel<R> voxel(problem, 0);
  if (!voxel.exists) return;
  const Place<R> place = Place<R>::template find<kDims, kZeros>(problem, voxel);
  if (!place.finite) return;
  const Scale scale = Scale::of<R>(state, count_bits);
  const bool any_kind = state[1] != 0;
  const int64_t count = problem.batch * problem.channels * problem.image_voxels;
#pragma unroll 1
  for (int64_t channel = 0; channel < problem.channels; ++channel) {
    const int64_t map = voxel.batch * problem.channels + channel;
    const R grad = grad_output[map * problem.voxels + voxel.index];
    const Sum kind = any_kind ? kind_of(grad) : 0;
    const R scaled = kind == 0 ? scale_by(grad, scale.exponent) : R(0);
    Sum* const first = sums + map * problem.image_voxels + place.index;
#pragma unroll
    for (int i = 0; i < (kDims > 2 ? 2 : 1); ++i) {
#pragma unroll
      for (int j = 0; j < (kDims > 1 ? 2 : 1); ++j) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          R weight = place.axis[2].share(k);
          bool exists = place.axis[2].has(k);
          int64_t offset = k * place.step[2];
          if constexpr (kDims > 1) {
            weight *= place.axis[1].share(j);
            exists = exists && place.axis[1].has(j);
            offset += j * place.step[1];
          }
          if constexpr (kDims > 2) {
            weight *= place.axis[0].share(i);
            exists = exists && place.axis[0].has(i);
            offset += i * place.step[0];
          }
          if (!exists || weight == 0) continue;
          add_share(first + offset, count, weight * scaled, scale.lower);
          if (kind != 0) atomicOr(first + offset, kind);
        }
      }
    }
  }
}

// The gradient, of count elements, from the sums.
template <class T>
__global__ void __launch_bounds__(kMeasureThreads)
    warp_convert(const Sum* sums, const Sum* state, int count_bits, int64_t count, T* image_grad) {
  using R = Real<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kMeasureThreads + threadIdx.x;
  if (index >= count) return;
  const Scale scale = Scale::of<R>(state, count_bits);
  const Sum kind = sums[index] & kKinds;
  R value = static_cast<R>(static_cast<int64_t>(sums[index] - kind));
  if constexpr (kWords<R> == 2) {
    value += static_cast<R>(static_cast<int64_t>(sums[count + index])) * Bits<R>::power_of_two(-scale.lower);
  }
  value = scale_by(value, -scale.exponent);
  if (kind != 0) {
    value = kind == kInfinite || kind == kMinusInfinite ? std::numeric_limits<R>::infinity()
                                                        : std::numeric_limits<R>::quiet_NaN();
    if (kind == kMinusInfinite) value = -value;
  }
  image_grad[index] = narrow<T>(value);
}

}  // namespace cuda
}  // namespace usreg
