// What warp does between voxels, and it and gaussian smoothing outside the image. The codes are those of
// usreg_kernels/ops/warp/native.py.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace usreg {

enum class Interpolation { kBilinear = 0, kNearest = 1 };

enum class Padding { kBorder = 0, kZeros = 1, kReflection = 2 };

inline Interpolation check_interpolation(const char* op, int64_t code) {
  STD_TORCH_CHECK(code == 0 || code == 1, op, ": mode must be 0 (bilinear) or 1 (nearest), not ", code);
  return static_cast<Interpolation>(code);
}

inline Padding check_padding(const char* op, int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= 2, op, ": padding_mode must be 0 (border), 1 (zeros) or 2 (reflection), not ",
                  code);
  return static_cast<Padding>(code);
}

}  // namespace usreg
