// The element types of tensors, as the kernels see them: double, float, and two of 16 bits. No header of torch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/half_bits.h"

namespace usreg {
namespace cuda {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// The type that a kernel computes with, and that losses, masks and grad_output have.
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

__device__ inline double widen(double value) { return value; }

__device__ inline float widen(float value) { return value; }

__device__ inline float widen(BFloat16 value) { return bfloat16_to_float(value.bits); }

__device__ inline float widen(Float16 value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  return float16_to_float(value.bits);
#endif
}

// Rounds to T, to nearest even.
template <class T>
__device__ inline T narrow(Real<T> value) {
  return value;
}

template <>
__device__ inline BFloat16 narrow<BFloat16>(float value) {
  BFloat16 result;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
  result.bits = float_to_bfloat16(value);
#endif
  return result;
}

template <>
__device__ inline Float16 narrow<Float16>(float value) {
  Float16 result;
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
  result.bits = float_to_float16(value);
#endif
  return result;
}

// An address so many voxels on. The compiler would keep offsets of 64 bits, two registers each.
template <class T>
__device__ const T* shifted(const T* from, int voxels) {
#if defined(__CUDA_ARCH__)
  const T* result;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(result) : "r"(voxels), "n"(sizeof(T)), "l"(from));
  return result;
#else
  return from + voxels;
#endif
}

template <class T>
__device__ Real<T> read(const T* source) {
  if constexpr (sizeof(T) == 2) {
    return widen(T{__ldg(&source->bits)});
  } else {
    return __ldg(source);
  }
}

template <class T>
__device__ Real<T> read(const T* from, int voxels) {
  return read(shifted(from, voxels));
}

}  // namespace cuda
}  // namespace usreg
