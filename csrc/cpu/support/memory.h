// Output tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "common/dtypes.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace usreg {

// Asks for large pages under a tensor's memory, where it spans some. The memory of a large output comes fresh from the
// system at each call; handing it out in pages of 4 KiB takes several times longer than to fill it. Only a hint.
inline void advise_large_pages(const torch::stable::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  const uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t last = end / kLargePage * kLargePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)tensor;
#endif
}

// A tensor of this shape and dtype that a loop does not need any longer, see memory.cpp; it is then no longer spare.
std::optional<torch::stable::Tensor> take_spare(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype);

// An uninitialised contiguous CPU tensor for a kernel to fill.
inline torch::stable::Tensor new_output(const torch::stable::Tensor& like,
                                        torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  if (std::optional<torch::stable::Tensor> spare = take_spare(sizes, dtype)) return *spare;
  torch::stable::Tensor output = torch::stable::new_empty(like, sizes, dtype);
  advise_large_pages(output);
  return output;
}

// A gradient of the shape of like; none where it is not needed.
inline std::optional<torch::stable::Tensor> new_gradient(const torch::stable::Tensor& like, bool needed,
                                                         ScalarType dtype) {
  return needed ? std::optional<torch::stable::Tensor>(new_output(like, like.sizes(), dtype)) : std::nullopt;
}

}  // namespace usreg
