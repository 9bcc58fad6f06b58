// From window sums of two images to their squared correlation and its derivatives, for one voxel.
#pragma once

#include "common/half_bits.h"

namespace usreg {

// Window sums of p, t, p p, t t and p t.
template <class R>
struct WindowSums {
  R p, t, pp, tt, pt;
};

// What is the same for all voxels.
//
// Variances and covariances are computed N times as large, N being the window's volume, as N sum(xy) - sum(x) sum(y):
// where an image is constant and its values are integers, as in the air around a CT, this gives an exact 0, which
// sum(xy) - sum(x) sum(y) / N with a rounded 1 / N would miss. ncc is the same for it; its derivatives turn out N times
// as small. Hence smooth_nr and smooth_dr are N^2 and N times as large.
template <class R>
struct CorrelationConstants {
  R volume, inverse_volume, smooth_nr, smooth_dr;

  CorrelationConstants(double n, double nr, double dr)
      : volume(static_cast<R>(n)),
        inverse_volume(static_cast<R>(1 / n)),
        smooth_nr(static_cast<R>(nr * n * n)),
        smooth_dr(static_cast<R>(dr * n)) {}
};

// The derivatives of ncc with respect to the local statistics, over N, times what meets them in the gradient:
// gradient(p) = N (S_constant_p + t S_by_cross + p S_slope_p), S being the window's sum; for t the roles are exchanged.
template <class R>
struct CorrelationMaps {
  R by_cross, slope_p, constant_p, slope_t, constant_t;
};

USREG_EVERYWHERE inline double reciprocal(double value) { return 1.0 / value; }

USREG_EVERYWHERE inline float reciprocal(float value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));  // to one unit in the last place
  return result;
#else
  return 1.0f / value;
#endif
}

// N sum(xy) - sum(x) sum(y), from products that are rounded alike: fused into one operation, equal ones would differ.
USREG_EVERYWHERE inline double scaled_covariance(double volume, double sum_xy, double sum_x, double sum_y) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(volume, sum_xy) - __dmul_rn(sum_x, sum_y);
#else
  return volume * sum_xy - sum_x * sum_y;
#endif
}

USREG_EVERYWHERE inline float scaled_covariance(float volume, float sum_xy, float sum_x, float sum_y) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(volume, sum_xy) - __fmul_rn(sum_x, sum_y);
#else
  return volume * sum_xy - sum_x * sum_y;
#endif
}

// ncc; and the derivatives, those of the target's gradient if kBoth. Two reciprocals instead of that of a product,
// which could overflow long before the correlation does. A NaN among the sums reaches ncc through the cross-covariance.
template <bool kBoth, class R>
USREG_EVERYWHERE inline R correlate(const WindowSums<R>& sums, const CorrelationConstants<R>& constants,
                                    CorrelationMaps<R>* maps) {
  const R mean_p = sums.p * constants.inverse_volume, mean_t = sums.t * constants.inverse_volume;
  const R cross = scaled_covariance(constants.volume, sums.pt, sums.p, sums.t);
  const R var_p = scaled_covariance(constants.volume, sums.pp, sums.p, sums.p);
  const R var_t = scaled_covariance(constants.volume, sums.tt, sums.t, sums.t);
  const R inverse_p = reciprocal(var_p > constants.smooth_dr ? var_p : constants.smooth_dr);
  const R inverse_t = reciprocal(var_t > constants.smooth_dr ? var_t : constants.smooth_dr);
  const R cross_p = cross * inverse_p;
  const R ncc = cross_p * (cross * inverse_t) + constants.smooth_nr * (inverse_p * inverse_t);
  maps->by_cross = (cross_p + cross_p) * inverse_t;
  const R twice = R(-2) * ncc;
  maps->slope_p = var_p > constants.smooth_dr ? twice * inverse_p : R(0);
  maps->constant_p = -(maps->by_cross * mean_t + maps->slope_p * mean_p);
  if (kBoth) {
    maps->slope_t = var_t > constants.smooth_dr ? twice * inverse_t : R(0);
    maps->constant_t = -(maps->by_cross * mean_p + maps->slope_t * mean_t);
  }
  return ncc;
}

}  // namespace usreg
