// Launches of separable.cuh.
#pragma once

#include "cuda/lncc/separable.cuh"

namespace usreg {
namespace cuda {

// How a call is cut into parts, and what it needs of the device's memory.
struct SeparablePlan {
  std::vector<SeparablePart> parts;
  int64_t blocks = 0;  // of the kernels that end a part
  int64_t sums = 0;    // elements of the largest part's arrays
};

inline int64_t separable_blocks(int64_t elements) { return ceil_div<int64_t>(elements, kSeparableThreads); }

// Whole volumes as long as they are small, else planes of one.
inline SeparablePlan plan_separable(const LnccShape& shape, const LnccWindow& window) {
  SeparablePlan plan;
  const int halo = LnccWindow::halo(window.z);
  const int64_t planes = std::max<int64_t>(1, USREG_SEPARABLE_VOXELS / shape.plane());
  const bool whole = shape.depth <= planes;
  const int64_t volumes = whole ? planes / shape.depth : 1;
  const int64_t planes_at_once = whole ? shape.depth : std::max<int64_t>({1, halo, planes - 2 * halo});
  for (int64_t volume = 0; volume < shape.volumes; volume += volumes) {
    for (int64_t plane = 0; plane < shape.depth; plane += planes_at_once) {
      SeparablePart part = {};
      part.first_volume = volume;
      part.volumes = std::min(volumes, shape.volumes - volume);
      part.begin = static_cast<int>(plane);
      part.end = static_cast<int>(std::min<int64_t>(plane + planes_at_once, shape.depth));
      part.first = std::max(part.begin - halo, 0);
      part.last = std::min(part.end + halo, shape.depth);
      part.first_block = plan.blocks;
      plan.parts.push_back(part);
      plan.blocks += separable_blocks(part.voxels(shape));
      plan.sums = std::max(plan.sums, part.sums(shape));
    }
  }
  return plan;
}

inline int64_t weight_count(const LnccWindow& window) {
  return static_cast<int64_t>(window.z.size() + window.y.size() + window.x.size());
}

// Stores the weights; memory: weight_count of them.
inline SeparableWindow store_window(Launches& launches, const LnccWindow& window, double* memory) {
  std::vector<double> all(window.z);
  all.insert(all.end(), window.y.begin(), window.y.end());
  all.insert(all.end(), window.x.begin(), window.x.end());
  for (size_t start = 0; start < all.size(); start += kWeightsPerLaunch) {
    const int count = static_cast<int>(std::min<size_t>(kWeightsPerLaunch, all.size() - start));
    WeightPiece<kWeightsPerLaunch> piece = {};
    std::copy_n(all.begin() + start, count, piece.weights);
    launches.run(store_weights<kWeightsPerLaunch>, 1, kWeightsPerLaunch, 0, piece, count, memory + start);
  }
  const double *const y = memory + window.z.size(), *const x = y + window.y.size();
  return {memory, y, x, LnccWindow::halo(window.z), LnccWindow::halo(window.y), LnccWindow::halo(window.x)};
}

// memory: (2, kCorrelationSums, plan.sums). outputs: partial sums, plan.blocks of them.
template <class T>
void launch_separable_forward(Launches& launches, const LnccShape& shape, const SeparablePlan& plan,
                              const SeparableWindow& window, int map_count,
                              const CorrelationConstants<double>& constants, const T* pred, const T* target,
                              double* memory, const CorrelationOutputs<Real<T>>& outputs) {
  double* const summed = memory + kCorrelationSums * plan.sums;
  for (const SeparablePart& part : plan.parts) {
    const int64_t blocks = separable_blocks(part.sums(shape));
    launches.run(sum_products_along_x<T>, blocks, kSeparableThreads, 0, shape, part, window, pred, target, memory);
    launches.run(sum_along_y<double>, blocks, kSeparableThreads, 0, shape, part, window, kCorrelationSums, memory,
                 summed);
    launches.run(correlate_along_z<Real<T>>, separable_blocks(part.voxels(shape)), kSeparableThreads,
                 block_sum_bytes<double>(kSeparableThreads), shape, part, window, constants, summed, map_count,
                 outputs);
  }
}

// memory: (2, map_count, plan.sums).
template <class T>
void launch_separable_backward(Launches& launches, const LnccShape& shape, const SeparablePlan& plan,
                               const SeparableWindow& window, int map_count, const Real<T>* maps,
                               const Real<T>* grad_map, const T* pred, const T* target, Real<T>* memory,
                               const GradientOutputs<T>& outputs) {
  using R = Real<T>;
  R* const summed = memory + map_count * plan.sums;
  for (const SeparablePart& part : plan.parts) {
    const int64_t blocks = separable_blocks(part.sums(shape));
    launches.run(sum_maps_along_x<R>, blocks, kSeparableThreads, 0, shape, part, window, maps, map_count, grad_map,
                 memory);
    launches.run(sum_along_y<R>, blocks, kSeparableThreads, 0, shape, part, window, map_count, memory, summed);
    launches.run(write_gradients_along_z<T>, separable_blocks(part.voxels(shape)), kSeparableThreads, 0, shape, part,
                 window, summed, map_count, pred, target, outputs);
  }
}

}  // namespace cuda
}  // namespace usreg
