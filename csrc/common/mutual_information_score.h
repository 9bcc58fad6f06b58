// The loss of a joint distribution and its derivative; the formulas are in
// usreg_kernels/ops/mutual_information/reference.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "common/half_bits.h"

namespace usreg {

USREG_EVERYWHERE inline double entropy_term(double p) { return p == 0 ? 0.0 : -p * std::log(p); }

USREG_EVERYWHERE inline double entropy_slope(double p) { return p == 0 ? 0.0 : -std::log(p) - 1; }

// The term of mutual information that an entry of a joint distribution makes with the sums of its row and column.
struct InfoTerm {
  double value;
  double own;         // its derivative by the entry itself
  double by_product;  // less its derivative by the product of the sums

  USREG_EVERYWHERE InfoTerm(double p, double p_a, double p_b, double smooth_nr, double smooth_dr) {
    const double below = p_a * p_b + smooth_dr;
    const double ratio = (p + smooth_nr) / below, inside = ratio + smooth_dr, logarithm = std::log(inside);
    const double through = p / inside / below;
    value = p * logarithm;
    own = logarithm + through;
    by_product = through * ratio;
  }
};

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
      const InfoTerm term(joint[i * bins + j], p_a[i], p_b[j], smooth_nr, smooth_dr);
      total += term.value;
      through_a[i] += term.by_product * p_b[j];
      through_b[j] += term.by_product * p_a[i];
      if (slopes != nullptr) slopes[i * bins + j] = -term.own;
    }
  }
  for (int64_t i = 0; slopes != nullptr && i < bins; ++i) {
    for (int64_t j = 0; j < bins; ++j) slopes[i * bins + j] += through_a[i] + through_b[j];
  }
  return -total;
}

}  // namespace usreg
