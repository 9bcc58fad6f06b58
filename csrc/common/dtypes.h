// The dtypes that the kernels take: float64, float32, float16 and bfloat16.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "common/half_bits.h"

namespace usreg {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

// The type that a kernel computes with, and that losses, masks and grad_output have: double for double, else float.
template <class T>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <class T>
using Real = typename RealOf<T>::type;

inline ScalarType real_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Stands for a type as the argument of a generic lambda: `using T = typename decltype(tag)::type;`.
template <class T>
struct TypeTag {
  using type = T;
};

// Calls function(TypeTag<T>()) with the C++ type of a dtype; raises for a dtype that the kernels do not take.
template <class Function>
void dispatch_floating(ScalarType dtype, const char* op, const Function& function) {
  switch (dtype) {
    case ScalarType::Double:
      return function(TypeTag<double>());
    case ScalarType::Float:
      return function(TypeTag<float>());
    case ScalarType::Half:
      return function(TypeTag<Half>());
    case ScalarType::BFloat16:
      return function(TypeTag<BFloat16>());
    default:
      STD_TORCH_CHECK(false, op, ": dtype ", torch::headeronly::toString(dtype),
                      " is not supported; use float64, float32, float16 or bfloat16");
  }
}

}  // namespace usreg
