// DVF MSE on GPUs: one pass over both fields for the loss, and one for the gradients.
//
// Nothing but the divisor of the mean is saved: reading both fields again moves as many bytes as a gradient that
// forward would write and backward would scale, and takes no memory.
#pragma once

#include <type_traits>

#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"
#include "cuda/support/reduction.cuh"

namespace usreg {
namespace cuda {

constexpr int kErrorThreads = 256;
constexpr int kErrorsAtOnce = 4;  // that a thread loads before it uses the first
constexpr int64_t kErrorBlock = kErrorThreads * kErrorsAtOnce * 2;

// Two fields, cut into rows that a mask's rows fit: the whole field, or, where all channels share a mask of one
// channel, a channel's voxels. R is Real<T>.
template <class T>
struct DvfPair {
  using R = Real<T>;
  const T* pred;  // (rows, size)
  const T* gt;    // (rows, size)
  const R* mask;  // null, or (rows / rows_per_mask, size)
  int64_t rows, size, rows_per_mask;

  __host__ __device__ int64_t blocks_per_row() const { return ceil_div(size, kErrorBlock); }
  __host__ __device__ int64_t blocks() const { return rows * blocks_per_row(); }
};

// Errors of voxels that lie kErrorThreads apart, and their weights; mask may be null.
template <int kVoxels, class T>
struct Errors {
  using R = Real<T>;
  static constexpr int kCount = kVoxels;
  R error[kCount], weight[kCount];

  __device__ Errors(const T* pred, const T* gt, const R* mask) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      error[i] = widen(pred[i * kErrorThreads]) - widen(gt[i * kErrorThreads]);
      weight[i] = 1;
    }
    if (mask == nullptr) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) weight[i] = mask[i * kErrorThreads];
  }
};

// Calls function(voxel, errors) for this thread's voxels, from `voxel` of the fields on as many as there are errors.
template <class T, class Function>
__device__ void for_each_errors(const DvfPair<T>& fields, const Function& function) {
  using R = Real<T>;
  const auto per_row = static_cast<unsigned>(fields.blocks_per_row());  // grids fit 32 bits, and division is quicker
  const int64_t row = blockIdx.x / per_row, block = blockIdx.x % per_row * kErrorBlock;
  const int64_t first = row * fields.size, mask_first = row / fields.rows_per_mask * fields.size;
  const int64_t end = block + kErrorBlock < fields.size ? block + kErrorBlock : fields.size;
  int64_t place = block + threadIdx.x;
  const auto take = [&](auto count) {
    const int64_t voxel = first + place;
    const R* const mask = fields.mask == nullptr ? nullptr : fields.mask + mask_first + place;
    function(voxel, Errors<decltype(count)::value, T>(fields.pred + voxel, fields.gt + voxel, mask));
    place += decltype(count)::value * kErrorThreads;
  };
#pragma unroll 1
  while (place + (kErrorsAtOnce - 1) * kErrorThreads < end) take(std::integral_constant<int, kErrorsAtOnce>());
#pragma unroll 1
  while (place < end) take(std::integral_constant<int, 1>());
}

// Writes values of voxels that lie kErrorThreads apart.
template <class T, class R, int kCount>
__device__ void write_apart(T* target, const R (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) target[i * kErrorThreads] = narrow<T>(values[i]);
}

// loss_map: null, or (rows, size), to which the weighted squared errors go. Else their sum and the mask's go to
// partials and weights, one per block.
template <class T>
__global__ void __launch_bounds__(kErrorThreads)
    sum_errors(DvfPair<T> fields, Real<T>* loss_map, Real<T>* partials, Real<T>* weights) {
  using R = Real<T>;
  R total = 0, total_weight = 0;
  for_each_errors(fields, [&](int64_t voxel, auto errors) {
#pragma unroll
    for (int i = 0; i < errors.kCount; ++i) {
      errors.error[i] = errors.error[i] * errors.error[i] * errors.weight[i];
      total += errors.error[i];
      total_weight += errors.weight[i];
    }
    if (loss_map != nullptr) write_apart(loss_map + voxel, errors.error);
  });
  if (loss_map != nullptr) return;
  total = block_sum(total);
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
  if (fields.mask == nullptr) return;
  total_weight = block_sum(total_weight);
  if (threadIdx.x == 0) weights[blockIdx.x] = total_weight;
}

// grad: the incoming gradient, a scalar, or with has_map of shape (rows, size). divisor: of the mean. pred_grad,
// gt_grad: null, or (rows, size).
template <class T>
__global__ void __launch_bounds__(kErrorThreads)
    write_error_gradients(DvfPair<T> fields, const Real<T>* grad, bool has_map, const double* divisor, T* pred_grad,
                          T* gt_grad) {
  using R = Real<T>;
  const R scale = has_map ? R(2) : static_cast<R>(2 * static_cast<double>(*grad) / *divisor);
  for_each_errors(fields, [&](int64_t voxel, auto errors) {
    auto& gradients = errors.error;
#pragma unroll
    for (int i = 0; i < errors.kCount; ++i) gradients[i] *= scale * errors.weight[i];
    if (has_map) {
#pragma unroll
      for (int i = 0; i < errors.kCount; ++i) gradients[i] *= grad[voxel + i * kErrorThreads];
    }
    if (pred_grad != nullptr) write_apart(pred_grad + voxel, gradients);
    if (gt_grad == nullptr) return;
#pragma unroll
    for (int i = 0; i < errors.kCount; ++i) gradients[i] = -gradients[i];
    write_apart(gt_grad + voxel, gradients);
  });
}

// How many partial sums launch_dvf_mse takes: (2, this many) of Real<T>.
template <class T>
int64_t dvf_mse_partials(const DvfPair<T>& fields) {
  return fields.blocks();
}

// Fills loss_map (rows, size) if it is not null; else loss, a mean or a sum, and what the sum was divided by.
template <class T>
void launch_dvf_mse(Launches& launches, const DvfPair<T>& fields, bool mean, Real<T>* loss_map, Real<T>* partials,
                    Real<T>* loss, double* divisor) {
  using R = Real<T>;
  R* const weights = partials + fields.blocks();
  launches.run(sum_errors<T>, fields.blocks(), kErrorThreads, block_sum_bytes<R>(kErrorThreads), fields, loss_map,
               partials, weights);
  if (loss_map != nullptr) return;
  const double count = mean ? static_cast<double>(fields.rows) * static_cast<double>(fields.size) : 1;
  launch_finish<R>(launches, partials, mean && fields.mask != nullptr ? weights : nullptr, fields.blocks(), 1, count,
                   loss, divisor);
}

template <class T>
void launch_dvf_mse_gradients(Launches& launches, const DvfPair<T>& fields, const Real<T>* grad, bool has_map,
                              const double* divisor, T* pred_grad, T* gt_grad) {
  launches.run(write_error_gradients<T>, fields.blocks(), kErrorThreads, 0, fields, grad, has_map, divisor, pred_grad,
               gt_grad);
}

}  // namespace cuda
}  // namespace usreg
