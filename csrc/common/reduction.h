// How a loss map becomes the loss.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace usreg {

// The values are those of the ops' schemas.
enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

inline Reduction check_reduction(const char* op, int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value <= 2, op, ": reduction=", value, " is not 0 (none), 1 (mean) or 2 (sum)");
  return static_cast<Reduction>(value);
}

}  // namespace usreg
