// Launches of the march: from what is known when a call is made to a kernel with constants. Only for the files that
// instantiate them for an element type.
#pragma once

#include <type_traits>

#include "cuda/lncc/march_backward.cuh"
#include "cuda/lncc/march_forward.cuh"
#include "cuda/lncc/plan.cuh"

namespace usreg {
namespace cuda {

// Calls function(integral constant of the halo).
template <int kHalo = 1, class Function>
void dispatch_halo(int halo, const Function& function) {
  if (halo == kHalo) {
    function(std::integral_constant<int, kHalo>());
  } else if constexpr (kHalo < kLargestMarch / 2) {
    dispatch_halo<kHalo + 1>(halo, function);
  }
}

// Boxes have kernels of their own, and once more without what training seldom asks for (kPlain). Of the largest boxes
// some would not fit the registers: these are taken as windows whose weights are 1.
template <class T, int kHalo, int kMaps>
auto select_march_forward(bool box, bool plain) {
  constexpr bool kFits = kHalo < kLargestMarch / 2;
  return box && plain   ? lncc_march_forward<kHalo, true, kMaps, true, T>
         : box && kFits ? lncc_march_forward<kHalo, kFits, kMaps, false, T>
                        : lncc_march_forward<kHalo, false, kMaps, false, T>;
}

template <class T, int kHalo, int kMaps>
auto select_march_backward(bool box, bool plain) {
  constexpr bool kFits = kHalo < kLargestMarch / 2 || kMaps == 3;
  return !box || !kFits ? lncc_march_backward<kHalo, false, kMaps, false, T>
         : plain        ? lncc_march_backward<kHalo, kFits, kMaps, kFits, T>
                        : lncc_march_backward<kHalo, kFits, kMaps, false, T>;
}

template <class T>
void MarchLaunches<T>::forward(Launches& launches, const MarchPlan& plan, int map_count,
                               const CorrelationConstants<float>& constants, const T* pred, const T* target,
                               const CorrelationOutputs<float>& outputs) {
  const MarchForwardArguments<T> arguments = {plan.grid, plan.weights, constants, pred, target, outputs};
  const bool plain = outputs.mask == nullptr && outputs.loss_map == nullptr;
  dispatch_halo(plan.halo, [&](auto halo) {
    constexpr int kHalo = decltype(halo)::value;
    const auto kernel = map_count == 0   ? select_march_forward<T, kHalo, 0>(plan.box, plain)
                        : map_count == 3 ? select_march_forward<T, kHalo, 3>(plan.box, plain)
                                         : select_march_forward<T, kHalo, 5>(plan.box, plain);
    launches.run(kernel, plan.grid.blocks(), kMarchThreads, block_sum_bytes<float>(kMarchThreads), arguments);
  });
}

template <class T>
void MarchLaunches<T>::backward(Launches& launches, const MarchPlan& plan, int map_count, const float* maps,
                                const float* grad_map, const T* pred, const T* target,
                                const GradientOutputs<T>& outputs) {
  const MarchBackwardArguments<T> arguments = {plan.grid, plan.weights, maps, grad_map, pred, target, outputs};
  dispatch_halo(plan.halo, [&](auto halo) {
    constexpr int kHalo = decltype(halo)::value;
    const bool plain = grad_map == nullptr;
    const auto kernel = map_count == 3 ? select_march_backward<T, kHalo, 3>(plan.box, plain)
                                       : select_march_backward<T, kHalo, 5>(plan.box, plain);
    launches.run(kernel, plan.grid.blocks(), kMarchThreads, 0, arguments);
  });
}

}  // namespace cuda
}  // namespace usreg
