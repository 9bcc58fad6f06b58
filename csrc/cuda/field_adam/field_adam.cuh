// A step of Adam on GPUs: one pass over gradient, moments and field; two where the longest vector gives the scale.
//
// A first kernel of one thread counts the step, and computes what follows from the count once for all. In the scaled
// step each block of the first pass writes the longest direction that it has seen; a block per sample finds the longest
// of these. There are no atomics, and a maximum is exact: the same input gives the same bits.
#pragma once

#include <cmath>
#include <type_traits>

#include "common/adam.h"
#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"
#include "cuda/support/reduction.cuh"

namespace usreg {
namespace cuda {

constexpr int kAdamThreads = 256;
constexpr int kAdamAtOnce = 4;  // values that a thread loads before it uses the first
constexpr int64_t kAdamBlock = kAdamThreads * kAdamAtOnce * 2;

// A field (samples, components, voxels), its gradient and its moments; T is float or double.
template <class T>
struct AdamField {
  const T* grad;
  T* exp_avg;
  T* exp_avg_sq;
  T* field;
  int64_t samples, components, voxels;
  AdamRates<T> rates;

  __host__ __device__ int64_t sample_size() const { return components * voxels; }
  __host__ __device__ int64_t size() const { return samples * sample_size(); }
};

__device__ inline float square_root(float value) { return sqrtf(value); }

__device__ inline double square_root(double value) { return sqrt(value); }

// The squared length of a vector as an unsigned integer: numbers above 0 keep their order, and NaN is above all.
template <class T>
using AdamBits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class T>
__device__ AdamBits<T> bits_of(T value) {
  AdamBits<T> bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits & ~(AdamBits<T>(1) << (8 * sizeof(bits) - 1));
}

template <class T>
__device__ T from_bits(AdamBits<T> bits) {
  T value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// New moments of values that lie kAdamThreads apart, or moments as they are, and Adam's direction.
template <int kCount, class T>
struct AdamMoments {
  T first[kCount], second[kCount];

  __device__ AdamMoments(const AdamField<T>& field, int64_t place) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      first[i] = field.exp_avg[place + i * kAdamThreads];
      second[i] = field.exp_avg_sq[place + i * kAdamThreads];
    }
  }

  __device__ void update(const AdamField<T>& field, int64_t place) {
    const AdamRates<T>& rates = field.rates;
    T gradient[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) gradient[i] = field.grad[place + i * kAdamThreads];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      first[i] = first[i] * rates.beta1 + gradient[i] * rates.rest1;
      second[i] = second[i] * rates.beta2 + gradient[i] * gradient[i] * rates.rest2;
      field.exp_avg[place + i * kAdamThreads] = first[i];
      field.exp_avg_sq[place + i * kAdamThreads] = second[i];
    }
  }

  __device__ T direction(const AdamField<T>& field, T root, int i) const {
    return first[i] / (square_root(second[i]) * root + field.rates.eps);
  }
};

// Calls function(count, place) for this thread's places of its block's part of a row of `size` values: `count` places
// from `place` of the row on, kAdamThreads apart.
template <class Function>
__device__ void for_each_place(int64_t block, int64_t size, const Function& function) {
  int64_t place = block * kAdamBlock + threadIdx.x;
  const int64_t end = (block + 1) * kAdamBlock < size ? (block + 1) * kAdamBlock : size;
#pragma unroll 1
  for (; place + (kAdamAtOnce - 1) * kAdamThreads < end; place += kAdamAtOnce * kAdamThreads) {
    function(std::integral_constant<int, kAdamAtOnce>(), place);
  }
#pragma unroll 1
  for (; place < end; place += kAdamThreads) function(std::integral_constant<int, 1>(), place);
}

// One more step, and what follows from their number.
template <class T>
__global__ void count_step(float* step, double lr, double beta1, double beta2, AdamCorrections<T>* corrections) {
  *step += 1;
  *corrections = adam_corrections<T>(lr, beta1, beta2, *step);
}

// Writes scale * direction to the field, or adds it, in rows of `row_size` values with a scale each; null: the scale of
// the plain step, which updates the moments before.
template <class T, bool kScaled, bool kReplace>
__global__ void __launch_bounds__(kAdamThreads)
    write_adam_field(AdamField<T> field, int64_t row_size, const AdamCorrections<T>* corrections, const T* scales) {
  const auto per_row = static_cast<unsigned>(ceil_div(row_size, kAdamBlock));
  const int64_t row = blockIdx.x / per_row, begin = row * row_size;
  const T root = corrections->root, scale = kScaled ? scales[row] : corrections->plain_scale;
  for_each_place(blockIdx.x % per_row, row_size, [&](auto count, int64_t place) {
    constexpr int kCount = decltype(count)::value;
    AdamMoments<kCount, T> moments(field, begin + place);
    if (!kScaled) moments.update(field, begin + place);
    T* const target = field.field + begin + place;
    T before[kCount] = {};
#pragma unroll
    for (int i = 0; !kReplace && i < kCount; ++i) before[i] = target[i * kAdamThreads];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      target[i * kAdamThreads] = before[i] + moments.direction(field, root, i) * scale;
    }
  });
}

// Updates the moments, and writes the squared length of the longest direction of each block's voxels to `longest`.
template <class T>
__global__ void __launch_bounds__(kAdamThreads)
    update_moments(AdamField<T> field, const AdamCorrections<T>* corrections, AdamBits<T>* longest) {
  const auto per_sample = static_cast<unsigned>(ceil_div(field.voxels, kAdamBlock));
  const int64_t sample = blockIdx.x / per_sample, begin = sample * field.sample_size();
  const T root = corrections->root;
  AdamBits<T> most = 0;
  for_each_place(blockIdx.x % per_sample, field.voxels, [&](auto count, int64_t voxel) {
    constexpr int kCount = decltype(count)::value;
    T squares[kCount] = {};
    int64_t place = begin + voxel;
#pragma unroll 1
    for (int64_t component = 0; component < field.components; ++component, place += field.voxels) {
      AdamMoments<kCount, T> moments(field, place);
      moments.update(field, place);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const T direction = moments.direction(field, root, i);
        // NaN where the square of a gradient has overflowed: the direction is 0 there.
        squares[i] += direction * direction + (moments.second[i] - moments.second[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) most = bits_of(squares[i]) > most ? bits_of(squares[i]) : most;
  });
  most = block_max(most);
  if (threadIdx.x == 0) longest[blockIdx.x] = most;
}

// The scale of a sample, one per block, from the `per_sample` squared lengths that update_moments wrote.
template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    find_adam_scale(const AdamBits<T>* longest, int64_t per_sample, double lr, T* scales) {
  AdamBits<T> most = 0;
  for (int64_t i = threadIdx.x; i < per_sample; i += kFinishThreads) {
    const AdamBits<T> bits = longest[blockIdx.x * per_sample + i];
    most = bits > most ? bits : most;
  }
  most = block_max(most);
  if (threadIdx.x == 0) scales[blockIdx.x] = adam_longest_scale<T>(lr, from_bits<T>(most));
}

// How many values of T launch_field_adam takes as memory.
template <class T>
int64_t field_adam_memory(const AdamField<T>& field) {
  return 2 + field.samples * (1 + ceil_div(field.voxels, kAdamBlock));
}

// The whole step. memory: field_adam_memory values.
template <class T, bool kReplace>
void launch_field_adam(Launches& launches, const AdamField<T>& field, double lr, double beta1, double beta2,
                       bool scaled, float* step, T* memory) {
  auto* const corrections = reinterpret_cast<AdamCorrections<T>*>(memory);
  launches.run(count_step<T>, 1, 1, 0, step, lr, beta1, beta2, corrections);
  if (field.size() == 0) return;
  if (!scaled) {
    launches.run(write_adam_field<T, false, kReplace>, ceil_div(field.size(), kAdamBlock), kAdamThreads, 0, field,
                 field.size(), corrections, nullptr);
    return;
  }
  T* const scales = memory + 2;
  auto* const longest = reinterpret_cast<AdamBits<T>*>(scales + field.samples);
  const int64_t per_sample = ceil_div(field.voxels, kAdamBlock);
  launches.run(update_moments<T>, field.samples * per_sample, kAdamThreads, block_sum_bytes<AdamBits<T>>(kAdamThreads),
               field, corrections, longest);
  launches.run(find_adam_scale<T>, field.samples, kFinishThreads, block_sum_bytes<AdamBits<T>>(kFinishThreads), longest,
               per_sample, lr, scales);
  launches.run(write_adam_field<T, true, kReplace>, field.samples * ceil_div(field.sample_size(), kAdamBlock),
               kAdamThreads, 0, field, field.sample_size(), corrections, scales);
}

}  // namespace cuda
}  // namespace usreg
