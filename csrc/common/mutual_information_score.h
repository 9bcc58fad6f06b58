// The loss of a joint distribution and its derivative; the formulas stand in
// usreg_kernels/ops/mutual_information/reference.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace usreg {

inline double entropy_term(double p) { return p == 0 ? 0.0 : -p * std::log(p); }

inline double entropy_slope(double p) { return p == 0 ? 0.0 : -std::log(p) - 1; }

// Returns the loss of joint (bins, bins), and writes its derivative by each entry to slopes, if that is not null.
inline double score_joint(const double* joint, int64_t bins, bool normalized, double smooth_nr, double smooth_dr,
                          double* slopes) {
  std::vector<double> p_a(bins, 0.0), p_b(bins, 0.0), through_a(bins, 0.0), through_b(bins, 0.0);
  for (int64_t i = 0; i < bins; ++i) {
    for (int64_t j = 0; j < bins; ++j) {
      p_a[i] += joint[i * bins + j];
      p_b[j] += joint[i * bins + j];
    }
  }
  if (normalized) {
    double above = smooth_nr, below = smooth_dr;
    for (int64_t i = 0; i < bins; ++i) above += entropy_term(p_a[i]) + entropy_term(p_b[i]);
    for (int64_t i = 0; i < bins * bins; ++i) below += entropy_term(joint[i]);
    const double ratio = above / below;
    for (int64_t i = 0; slopes != nullptr && i < bins; ++i) {
      for (int64_t j = 0; j < bins; ++j) {
        const double by_own = entropy_slope(joint[i * bins + j]) * ratio;
        slopes[i * bins + j] = (by_own - entropy_slope(p_a[i]) - entropy_slope(p_b[j])) / below;
      }
    }
    return -ratio;
  }
  double total = 0;
  for (int64_t i = 0; i < bins; ++i) {
    for (int64_t j = 0; j < bins; ++j) {
      const double p = joint[i * bins + j], below = p_a[i] * p_b[j] + smooth_dr;
      const double ratio = (p + smooth_nr) / below, inside = ratio + smooth_dr, logarithm = std::log(inside);
      const double own = p / inside / below, by_product = own * ratio;
      total += p * logarithm;
      through_a[i] += by_product * p_b[j];
      through_b[j] += by_product * p_a[i];
      if (slopes != nullptr) slopes[i * bins + j] = -(logarithm + own);
    }
  }
  for (int64_t i = 0; slopes != nullptr && i < bins; ++i) {
    for (int64_t j = 0; j < bins; ++j) slopes[i * bins + j] += through_a[i] + through_b[j];
  }
  return -total;
}

}  // namespace usreg
