// What the launchers share: tensors in, raw pointers out. Only they know of torch, and only its stable ABI.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>
#include <type_traits>

#include "common/checks.h"
#include "common/dtypes.h"
#include "common/reduction.h"
#include "common/tensors.h"
#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"

// The tests build the launchers for CPU tensors, with a cuda_runtime.h of their own (tests/kernels/cuda_on_cpu).
#ifndef USREG_DISPATCH_KEY
#define USREG_DISPATCH_KEY CUDA
#endif

namespace usreg {
namespace cuda {

// Makes a tensor's GPU the current one, and launches on torch's current stream there.
class TensorLaunches : public Launches {
 public:
  explicit TensorLaunches(const Tensor& tensor)
      : Launches(current_stream(tensor.get_device_index())), guard_(tensor.get_device_index()) {}

  void check(const char* op) const {
    STD_TORCH_CHECK(error() == cudaSuccess, op, ": the launch of a CUDA kernel failed: ", cudaGetErrorString(error()));
  }

 private:
  static cudaStream_t current_stream(int32_t device) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
  }

  torch::stable::accelerator::DeviceGuard guard_;
};

// Calls function(TypeTag<T>()) with the kernels' type for a dtype; raises for a dtype that they do not take.
template <class Function>
void dispatch_elements(ScalarType dtype, const char* op, const Function& function) {
  dispatch_floating(dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (std::is_same_v<T, Half>) {
      function(TypeTag<Float16>());
    } else if constexpr (std::is_same_v<T, usreg::BFloat16>) {
      function(TypeTag<cuda::BFloat16>());
    } else {
      function(tag);
    }
  });
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// Null where there is no tensor.
template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data<T>(*tensor) : nullptr;
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
T* mutable_data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? mutable_data<T>(*tensor) : nullptr;
}

// Of the shape and dtype of like; none where it is not needed.
inline std::optional<Tensor> new_gradient(const Tensor& like, bool needed) {
  return needed ? std::optional<Tensor>(torch::stable::new_empty(like, like.sizes())) : std::nullopt;
}

// The loss of no voxels: NaN for a mean, as in torch, and 0 for a sum.
inline void fill_empty_loss(Tensor& loss, Reduction reduction) {
  torch::stable::fill_(loss, reduction == Reduction::kMean ? std::numeric_limits<double>::quiet_NaN() : 0.0);
}

}  // namespace cuda
}  // namespace usreg
