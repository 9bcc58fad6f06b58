// Output tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common/dtypes.h"

namespace usreg {

// Asks for large pages under a tensor's memory, where it spans some. Memory that comes fresh from the system is handed
// out page by page; in pages of 4 KiB that takes several times longer than to fill it.
void advise_large_pages(const torch::stable::Tensor& tensor);

// An uninitialised contiguous CPU tensor for a kernel to fill. The memory of a large one may be that of a large output
// which nobody looks at any longer, see memory.cpp.
torch::stable::Tensor new_output(const torch::stable::Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                 ScalarType dtype);

// A gradient of the shape of like; none where it is not needed.
inline std::optional<torch::stable::Tensor> new_gradient(const torch::stable::Tensor& like, bool needed,
                                                         ScalarType dtype) {
  return needed ? std::optional<torch::stable::Tensor>(new_output(like, like.sizes(), dtype)) : std::nullopt;
}

}  // namespace usreg
