// Gradient smoothness and bending energy on GPUs: one pass over the field for the loss, and one for the gradient, which
// finds the differences again. Nothing is saved.
//
// Loss and Gradient are classes of smoothness.cuh or bending.cuh. Each has a column of the field march
// past: what planes share stays in registers, and a border hides differences, at the price of an instruction each.
#pragma once

#include "cuda/field_losses/march.cuh"
#include "cuda/support/reduction.cuh"

namespace usreg {
namespace cuda {

// Blocks per multiprocessor that the registers of a loss leave room for. Capability 7.5 never runs more than eight.
template <class R>
constexpr int loss_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return 8;
#else
  return sizeof(R) == 8 ? 8 : 12;
#endif
}

// With kKeepMap, the loss of each voxel goes to output, the loss map; else their sum, one per block.
template <class Loss, bool kKeepMap>
__global__ void __launch_bounds__(kFieldThreads, loss_blocks<typename Loss::R>())
    sum_penalties(const __grid_constant__ FieldLoss<typename Loss::T> loss, typename Loss::R* output) {
  using T = typename Loss::T;
  using R = typename Loss::R;
  R total = 0;
  const FieldColumn column(loss);
  Loss march(loss, column, column.weights(loss, Loss::kWeights));
  // The planes of the loss map; before them, those that the difference along z needs.
  const int margin = loss.margin_along_z(Loss::kMargin);
  const int64_t first = column.z < margin ? margin : column.z;
  const int64_t last = column.z_end > loss.size[0] - margin ? loss.size[0] - margin : column.z_end;
  if (column.exists && march.exists() && first < last) {
    const bool has_next = last < loss.size[0];
    const int64_t plane = loss.plane(), map_plane = loss.map_plane(Loss::kMargin);
    const T* here = loss.field + column.place_in_field(loss, first - margin);
    R* map = output + column.place_in_map(loss, first, Loss::kMargin);
    const int turns = static_cast<int>(last - first) + margin + (has_next ? 1 : 0);
    const auto take = [&] {
      const R value = march.take(here);
      here += plane;
      return value;
    };
    const auto emit = [&](R value) {
      total += value;
      if (!kKeepMap) return;
      *map = value;
      map += map_plane;
    };
    int turn = 0;
#pragma unroll 1
    for (; turn < margin + 1; ++turn) take();  // they finish no plane of the chunk
    if ((turns - turn) % 2 != 0) {
      emit(take());
      ++turn;
    }
#pragma unroll 1
    for (; turn < turns; turn += 2) {  // in pairs, so that no register is moved to become the last plane's
      emit(take());
      emit(take());
    }
    if (!has_next) emit(march.finish());
  }
  if (kKeepMap) return;
  total = block_sum(total);
  if (threadIdx.x == 0) output[blockIdx.x] = total;
}

// grad: the incoming gradient, a scalar, or with Gradient::kHasMap in the shape of the loss map. gradient: of the
// field's shape.
template <class Gradient>
__global__ void __launch_bounds__(kFieldThreads, Gradient::kBlocks)
    write_field_gradient(const __grid_constant__ FieldLoss<typename Gradient::T> loss, const typename Gradient::R* grad,
                         typename Gradient::T* gradient) {
  using T = typename Gradient::T;
  using R = typename Gradient::R;
  constexpr int kReach = Gradient::kReach, kMargin = Gradient::kMargin;
  constexpr bool kHasMap = Gradient::kHasMap;
  const FieldColumn column(loss);
  if (!column.exists) return;
  // The planes whose values the gradient of the chunk's planes depends on.
  const int64_t first = column.z < kReach ? 0 : column.z - kReach;
  const int64_t last = column.z_end + kReach < loss.size[0] ? column.z_end + kReach : loss.size[0];
  const int turns = static_cast<int>(last - first), lead = static_cast<int>(column.z - first) + kReach;
  const int margin = loss.margin_along_z(kMargin);
  const int begin_in_map = first < margin ? margin - static_cast<int>(first) : 0;
  const int end_in_map = static_cast<int>((last < loss.size[0] - margin ? last : loss.size[0] - margin) - first);
  Gradient march(loss, column, column.weights(loss, Gradient::kWeights),
                 Gradient::kSlopeFactor * (kHasMap ? R(1) : *grad), {loss, column, grad, first, kMargin});
  const int64_t plane = loss.plane();
  const T* here = loss.field + column.place_in_field(loss, first);
  T* result = gradient + column.place_in_field(loss, first - kReach);
  const auto step = [&](bool in_map, bool has_earlier, bool finishes) {
    const R value = march.take(here, in_map, has_earlier);
    if (finishes) *result = narrow<T>(value);
    here += plane;
    result += plane;
  };
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
    if (turn == lead) {
#pragma unroll 1
      for (; turn + 1 < end_in_map; turn += 2) {  // nothing to ask for; in pairs, as above
        step(true, true, true);
        step(true, true, true);
      }
      if (turn == turns) break;
    }
    step(turn >= begin_in_map && turn < end_in_map, turn >= kReach, turn >= lead);
  }
#pragma unroll
  for (int i = 0; i < kReach; ++i) {
    const int64_t z = last - kReach + i;
    if (z >= column.z && z < column.z_end) *result = narrow<T>(march.finish(i));
    result += plane;
  }
}

// Fills loss_map if it is not null; else loss, the sum over divisor. partials: (loss.blocks()).
template <class Loss>
void launch_field_loss(Launches& launches, const FieldLoss<typename Loss::T>& loss, double divisor,
                       typename Loss::R* loss_map, typename Loss::R* partials, typename Loss::R* result) {
  using R = typename Loss::R;
  const size_t shared = block_sum_bytes<R>(kFieldThreads);
  if (loss_map != nullptr) {
    launches.run(sum_penalties<Loss, true>, loss.blocks(), kFieldThreads, shared, loss, loss_map);
  } else {
    launches.run(sum_penalties<Loss, false>, loss.blocks(), kFieldThreads, shared, loss, partials);
    launch_finish<R>(launches, partials, nullptr, loss.blocks(), 1, divisor, result, nullptr);
  }
}

template <class Gradient>
void launch_field_gradient(Launches& launches, const FieldLoss<typename Gradient::T>& loss,
                           const typename Gradient::R* grad, typename Gradient::T* gradient) {
  launches.run(write_field_gradient<Gradient>, loss.blocks(), kFieldThreads, 0, loss, grad, gradient);
}

}  // namespace cuda
}  // namespace usreg
