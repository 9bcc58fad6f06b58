// Gradient smoothness and bending energy on GPUs: one pass over the field for the loss, and one for the gradient, which
// gathers: each difference that takes a voxel in is computed anew from values that the caches hold. Nothing is saved.
//
// The lists of differences (common/field_terms.h) are unrolled by the compiler. Away from the borders all differences
// exist, and neighbouring ones share their loads.
#pragma once

#include "common/field_terms.h"
#include "cuda/elements.cuh"
#include "cuda/launch.cuh"
#include "cuda/reduction.cuh"

namespace usreg {
namespace cuda {

constexpr int kFieldThreads = 256;
constexpr int kFieldVoxelsPerThread = 4;
constexpr int64_t kFieldBlock = kFieldThreads * kFieldVoxelsPerThread;

// A loss as the kernels evaluate it. Shapes: field (components, z, y, x), see FieldShape; the map likewise, but for
// the margin at the borders of the existing axes.
template <class T>
struct FieldLoss {
  using R = Real<T>;
  const T* field;
  int64_t components, channels;
  int64_t size[3];
  R weights[3 * kFieldDifferences];  // (channels, differences): what multiplies each penalty

  __host__ __device__ int64_t component_numel() const { return size[0] * size[1] * size[2]; }
  __host__ __device__ int64_t blocks_per_component() const { return ceil_div(component_numel(), kFieldBlock); }
  __host__ __device__ int64_t blocks() const { return components * blocks_per_component(); }
};

// The stencil, known to the compiler.
template <FieldLossKind kKind, int kFirstAxis>
struct Stencil {
  static constexpr FieldStencil kStencil = field_stencil(kKind, kFirstAxis);
};

// Calls function(std::integral_constant<int, i>) for i from 0 to before kCount, each with a code of its own.
template <int kCount>
struct ForEach {
  template <class Function>
  __device__ static void call(const Function& function) {
    ForEach<kCount - 1>::call(function);
    function(Constant<kCount - 1>());
  }
  template <int kValue>
  struct Constant {
    static constexpr int value = kValue;
  };
};
template <>
struct ForEach<0> {
  template <class Function>
  __device__ static void call(const Function&) {}
};

// A voxel of a component, and the values around it. Index is int32_t where a component's voxels fit it.
template <FieldLossKind kKind, int kFirstAxis, class T, class Index>
struct FieldVoxel {
  using R = Real<T>;
  using S = Stencil<kKind, kFirstAxis>;
  static constexpr int kMargin = S::kStencil.margin;

  const T* here;
  Index stride[3];
  Index position[3];
  Index size[3];
  int64_t component;

  __device__ FieldVoxel(const FieldLoss<T>& loss, int64_t component_index, Index index) {
    component = component_index;
    here = loss.field + component * loss.component_numel() + index;
    for (int axis = 0; axis < 3; ++axis) size[axis] = static_cast<Index>(loss.size[axis]);
    stride[2] = 1;
    stride[1] = size[2];
    stride[0] = size[1] * size[2];
    const Index row = index / size[2];
    position[2] = index % size[2];
    position[1] = row % size[1];
    position[0] = row / size[1];
  }

  // Whether all differences exist that this voxel takes part in.
  __device__ bool is_inner() const {
    bool inner = true;
    for (int axis = kFirstAxis; axis < 3; ++axis) {
      inner = inner && position[axis] >= kFieldReach && position[axis] < size[axis] - kFieldReach;
    }
    return inner;
  }

  // Whether a difference exists around the voxel at an offset.
  template <int kDifference>
  __device__ bool exists(Offset offset) const {
    constexpr FieldStencil kStencil = field_stencil(kKind, kFirstAxis);
    constexpr Offset kFirst = kStencil.distance_from_first(kDifference, kFirstAxis);
    constexpr Offset kLast = kStencil.distance_from_last(kDifference, kFirstAxis);
    bool found = true;
#pragma unroll
    for (int axis = kFirstAxis; axis < 3; ++axis) {
      const Index place = position[axis] + offset.along(axis);
      found = found && place >= kFirst.along(axis) && place < size[axis] - kLast.along(axis);
    }
    return found;
  }

  __device__ R value(Offset offset) const {
    return widen(here[offset.z * stride[0] + offset.y * stride[1] + offset.x]);
  }

  // A difference around the voxel at an offset.
  template <int kDifference>
  __device__ R difference(Offset offset) const {
    constexpr Taps kTaps = S::kStencil.differences[kDifference];
    R found = value(kTaps.at[0] + offset) - value(kTaps.at[1] + offset);
    if constexpr (kTaps.count == 4) found -= value(kTaps.at[2] + offset) - value(kTaps.at[3] + offset);
    return found;
  }

  // Where the value of the voxel at an offset lies in the loss map.
  __device__ int64_t map_place(Offset offset) const {
    int64_t place = component;
    for (int axis = kFirstAxis; axis < 3; ++axis) {
      place = place * (size[axis] - 2 * kMargin) + position[axis] + offset.along(axis) - kMargin;
    }
    return place;
  }
};

template <Penalty kPenalty, class R>
__device__ R penalty(R difference) {
  if (kPenalty == Penalty::kSquare) return difference * difference;
  return difference < 0 ? -difference : difference;
}

// The derivative of the penalty; for the square, half of it. NaN stays NaN.
template <Penalty kPenalty, class R>
__device__ R slope(R difference) {
  if (kPenalty == Penalty::kSquare) return difference;
  return difference > 0 ? R(1) : difference < 0 ? R(-1) : R(0) * difference;
}

// loss_map: null, or where the loss of each voxel goes; else their sum goes to partials, one per block.
template <FieldLossKind kKind, Penalty kPenalty, int kFirstAxis, class T, class Index>
__global__ void __launch_bounds__(kFieldThreads)
    sum_penalties(const __grid_constant__ FieldLoss<T> loss, Real<T>* loss_map, Real<T>* partials) {
  using R = Real<T>;
  using S = Stencil<kKind, kFirstAxis>;
  const auto per_component = static_cast<unsigned>(loss.blocks_per_component());  // grids fit 32 bits
  const unsigned component = blockIdx.x / per_component;
  const int64_t start = blockIdx.x % per_component * kFieldBlock + threadIdx.x;
  const int first_weight = component % static_cast<unsigned>(loss.channels) * S::kStencil.difference_count;
  R total = 0;
#pragma unroll 1
  for (int i = 0; i < kFieldVoxelsPerThread; ++i) {
    const int64_t index = start + i * kFieldThreads;
    if (index >= loss.component_numel()) break;
    const FieldVoxel<kKind, kFirstAxis, T, Index> voxel(loss, component, static_cast<Index>(index));
    R value = 0;
    bool in_map = true;
    for (int axis = kFirstAxis; axis < 3; ++axis) {
      const Index place = voxel.position[axis];
      in_map = in_map && place >= voxel.kMargin && place < voxel.size[axis] - voxel.kMargin;
    }
    ForEach<S::kStencil.difference_count>::call([&](auto k) {
      constexpr int kDifference = decltype(k)::value;
      if (!voxel.template exists<kDifference>({})) return;
      value += loss.weights[first_weight + kDifference] * penalty<kPenalty>(voxel.template difference<kDifference>({}));
    });
    if (loss_map != nullptr && in_map) loss_map[voxel.map_place({})] = value;
    total += value;
  }
  if (loss_map != nullptr) return;
  total = block_sum(total);
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// What the differences around a voxel pass on to it: the derivative of the loss, for squares half of it.
template <bool kInner, FieldLossKind kKind, Penalty kPenalty, int kFirstAxis, class T, class Index>
__device__ Real<T> pull(const FieldVoxel<kKind, kFirstAxis, T, Index>& voxel, const FieldLoss<T>& loss,
                        int first_weight, const Real<T>* grad_map) {
  using R = Real<T>;
  using S = Stencil<kKind, kFirstAxis>;
  R total = 0;
  ForEach<S::kStencil.share_count>::call([&](auto k) {
    constexpr Share kShare = S::kStencil.shares[decltype(k)::value];
    constexpr Offset kFrom = Offset{} - kShare.offset;  // the voxel whose difference it is
    if (!kInner && !voxel.template exists<kShare.difference>(kFrom)) return;
    const R found = slope<kPenalty>(voxel.template difference<kShare.difference>(kFrom));
    const R weight = loss.weights[first_weight + kShare.difference] * R(kShare.factor);
    total += weight * found * (grad_map == nullptr ? R(1) : grad_map[voxel.map_place(kFrom)]);
  });
  return total;
}

// grad: the incoming gradient, a scalar, or with has_map in the shape of the loss map. gradient: of the field's shape.
template <FieldLossKind kKind, Penalty kPenalty, int kFirstAxis, class T, class Index>
__global__ void __launch_bounds__(kFieldThreads)
    write_field_gradient(const __grid_constant__ FieldLoss<T> loss, const Real<T>* grad, bool has_map, T* gradient) {
  using R = Real<T>;
  using S = Stencil<kKind, kFirstAxis>;
  const auto per_component = static_cast<unsigned>(loss.blocks_per_component());  // grids fit 32 bits
  const unsigned component = blockIdx.x / per_component;
  const int64_t start = blockIdx.x % per_component * kFieldBlock + threadIdx.x;
  const int first_weight = component % static_cast<unsigned>(loss.channels) * S::kStencil.difference_count;
  const R* const grad_map = has_map ? grad : nullptr;
  const R factor = (kPenalty == Penalty::kSquare ? R(2) : R(1)) * (has_map ? R(1) : *grad);
#pragma unroll 1
  for (int i = 0; i < kFieldVoxelsPerThread; ++i) {
    const int64_t index = start + i * kFieldThreads;
    if (index >= loss.component_numel()) break;
    const FieldVoxel<kKind, kFirstAxis, T, Index> voxel(loss, component, static_cast<Index>(index));
    const R found = voxel.is_inner() ? pull<true, kKind, kPenalty>(voxel, loss, first_weight, grad_map)
                                     : pull<false, kKind, kPenalty>(voxel, loss, first_weight, grad_map);
    gradient[component * loss.component_numel() + index] = narrow<T>(factor * found);
  }
}

// Fills loss_map if it is not null; else loss, the sum over divisor. partials: (loss.blocks()).
template <FieldLossKind kKind, Penalty kPenalty, int kFirstAxis, class T>
void launch_field_loss(Launches& launches, const FieldLoss<T>& loss, double divisor, Real<T>* loss_map,
                       Real<T>* partials, Real<T>* result) {
  using R = Real<T>;
  const auto kernel = loss.component_numel() <= INT32_MAX ? sum_penalties<kKind, kPenalty, kFirstAxis, T, int32_t>
                                                          : sum_penalties<kKind, kPenalty, kFirstAxis, T, int64_t>;
  launches.run(kernel, loss.blocks(), kFieldThreads, block_sum_bytes<R>(kFieldThreads), loss, loss_map, partials);
  if (loss_map == nullptr) {
    launch_finish<R>(launches, partials, nullptr, loss.blocks(), 1, divisor, result, nullptr);
  }
}

template <FieldLossKind kKind, Penalty kPenalty, int kFirstAxis, class T>
void launch_field_gradient(Launches& launches, const FieldLoss<T>& loss, const Real<T>* grad, bool has_map,
                           T* gradient) {
  const auto kernel = loss.component_numel() <= INT32_MAX
                          ? write_field_gradient<kKind, kPenalty, kFirstAxis, T, int32_t>
                          : write_field_gradient<kKind, kPenalty, kFirstAxis, T, int64_t>;
  launches.run(kernel, loss.blocks(), kFieldThreads, 0, loss, grad, has_map, gradient);
}

}  // namespace cuda
}  // namespace usreg
