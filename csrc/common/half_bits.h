// Half-precision numbers as bits, with no header of torch or CUDA. Rounding is to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define USREG_EVERYWHERE __host__ __device__
#else
#define USREG_EVERYWHERE
#endif

namespace usreg {

USREG_EVERYWHERE inline uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

USREG_EVERYWHERE inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

USREG_EVERYWHERE inline float bfloat16_to_float(uint16_t bits) {
  return float_from_bits(static_cast<uint32_t>(bits) << 16);
}

// Without a branch, so that loops vectorise.
USREG_EVERYWHERE inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7FC0u : rounded);
}

USREG_EVERYWHERE inline float float16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
  if (magnitude < 0x0400u) {  // zero and subnormals, in units of 2^-24
    return float_from_bits(sign | float_bits(static_cast<float>(magnitude) * 5.9604644775390625e-8f));
  }
  const uint32_t exponent_shift = magnitude >= 0x7C00u ? 224u : 112u;  // infinity and NaN, or a normal number
  return float_from_bits(sign | ((magnitude << 13) + (exponent_shift << 23)));
}

USREG_EVERYWHERE inline uint16_t float_to_float16(float value) {
  const uint32_t bits = float_bits(value), magnitude = bits & 0x7FFFFFFFu;
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;   // NaN
  if (magnitude >= 0x47800000u) return sign | 0x7C00u;  // 2^16 and above
  if (magnitude < 0x38800000u) {  // below 2^-14: a sum with 1/2, whose last bit is 2^-24, rounds to a subnormal
    return sign | static_cast<uint16_t>(float_bits(float_from_bits(magnitude) + 0.5f) - 0x3F000000u);
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13);
}

}  // namespace usreg
