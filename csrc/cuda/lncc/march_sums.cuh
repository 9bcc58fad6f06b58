// How the march of march.cuh sums windows along x and z. A thread holds kColumns neighbouring voxels.
#pragma once

#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"

namespace usreg {
namespace cuda {

constexpr int kColumns = 2;
constexpr int kLargestMarch = 15;  // beyond it the unfinished sums of a thread's voxels outgrow the registers

// A window's weights along each axis, by the distance from its centre; unused for boxes.
struct MarchWeights {
  int rows;  // half the window along y
  float z[kLargestMarch / 2 + 1], y[kLargestMarch / 2 + 1], x[kLargestMarch / 2 + 1];
};

__device__ inline float from_before(float value, int step, int lanes) {
  return __shfl_up_sync(0xFFFFFFFFu, value, step, lanes);
}

__device__ inline float from_after(float value, int step, int lanes) {
  return __shfl_down_sync(0xFFFFFFFFu, value, step, lanes);
}

// Window sums along x. The lanes of one row exchange them; those within half a window of a row's ends get nonsense.
template <int kHalo, bool kBox>
struct SumAlongX;

// Only sums of a lane's own columns travel: pairs, and the one column at either end of a box that halves a pair.
template <int kHalo>
struct SumAlongX<kHalo, true> {
  __device__ static void run(float (&columns)[kColumns], const MarchWeights&, int lanes) {
    constexpr int kFar = (kHalo + 1) / 2;  // the last lane that a box reaches
    const float pair = columns[0] + columns[1];
    float middle = pair;
#pragma unroll
    for (int step = 1; step < kFar; ++step) middle += from_before(pair, step, lanes) + from_after(pair, step, lanes);
    const float before = from_before(columns[1], kFar, lanes), after = from_after(columns[0], kFar, lanes);
    if constexpr (kHalo % 2 == 1) {
      columns[0] = middle + before;
      columns[1] = middle + after;
    } else {
      columns[0] = middle + from_before(pair, kFar, lanes) + after;
      columns[1] = middle + before + from_after(pair, kFar, lanes);
    }
  }
};

template <int kHalo>
struct SumAlongX<kHalo, false> {
  __device__ static void run(float (&columns)[kColumns], const MarchWeights& weights, int lanes) {
    const auto weight = [&](int distance) { return distance <= kHalo ? weights.x[distance] : 0.0f; };
    float first = weight(0) * columns[0] + weight(1) * columns[1];
    float second = weight(0) * columns[1] + weight(1) * columns[0];
#pragma unroll
    for (int step = 1; step <= (kHalo + 1) / 2; ++step) {
      const float before = from_before(columns[1], step, lanes), after = from_after(columns[0], step, lanes);
      first += weight(2 * step - 1) * before;
      second += weight(2 * step - 1) * after;
      if (2 * step > kHalo) continue;
      const float far_before = from_before(columns[0], step, lanes), far_after = from_after(columns[1], step, lanes);
      first += weight(2 * step) * (far_before + after);
      second += weight(2 * step) * (before + far_after);
      if (2 * step + 1 > kHalo) continue;
      first += weight(2 * step + 1) * far_after;
      second += weight(2 * step + 1) * far_before;
    }
    columns[0] = first;
    columns[1] = second;
  }
};

// The unfinished window sums along z of one quantity: what the planes so far add to the planes to come.
template <int kHalo, bool kBox>
struct UnfinishedSums {
  float sums[2 * kHalo][kColumns] = {};

  // Adds a plane; returns in its place the sums that it finishes, those of the plane kHalo before.
  __device__ void add(float (&plane)[kColumns], const MarchWeights& weights) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float value = plane[c];
      const auto weighted = [&](int i) { return kBox ? value : weights.z[i < kHalo ? kHalo - i : i - kHalo] * value; };
      plane[c] = sums[0][c] + weighted(0);
#pragma unroll
      for (int i = 1; i < 2 * kHalo; ++i) sums[i - 1][c] = sums[i][c] + weighted(i);
      sums[2 * kHalo - 1][c] = weighted(2 * kHalo);
    }
  }
};

// kColumns values of a row, as float. Rows begin at multiples of the pair's size.
__device__ inline void load_pair(const float* source, float (&values)[kColumns]) {
  const float2 pair = __ldg(reinterpret_cast<const float2*>(source));
  values[0] = pair.x;
  values[1] = pair.y;
}

template <class T>
__device__ inline void load_pair(const T* source, float (&values)[kColumns]) {
  const unsigned pair = __ldg(reinterpret_cast<const unsigned*>(source));
  T first, second;
  first.bits = static_cast<uint16_t>(pair);
  second.bits = static_cast<uint16_t>(pair >> 16);
  values[0] = widen(first);
  values[1] = widen(second);
}

__device__ inline void store_pair(float* target, const float (&values)[kColumns]) {
  *reinterpret_cast<float2*>(target) = {values[0], values[1]};
}

template <class T>
__device__ inline void store_pair(T* target, const float (&values)[kColumns]) {
  const unsigned first = narrow<T>(values[0]).bits, second = narrow<T>(values[1]).bits;
  *reinterpret_cast<unsigned*>(target) = first | second << 16;
}

}  // namespace cuda
}  // namespace usreg
