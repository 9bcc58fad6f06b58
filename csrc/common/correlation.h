// From window sums of two images to their squared correlation and its derivatives, for one voxel.
#pragma once

#include "common/half_bits.h"

namespace usreg {

// Window sums of p, t, p p, t t and p t.
template <class R>
struct WindowSums {
  R p, t, pp, tt, pt;
};

// What is the same for all voxels. The variances carry the window's volume, as smooth_dr does.
template <class R>
struct CorrelationConstants {
  R inverse_volume, smooth_nr, smooth_dr;
};

// The derivatives of ncc with respect to the local statistics, times what meets them in the gradient:
// gradient(p) = S_constant_p + t S_by_cross + p S_slope_p, S being the window's sum; for t the roles are exchanged.
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

// ncc; and the derivatives, those of the target's gradient if kBoth. Two reciprocals instead of that of a product,
// which could overflow long before the correlation does. A NaN among the sums reaches ncc through the cross-covariance.
template <bool kBoth, class R>
USREG_EVERYWHERE inline R correlate(const WindowSums<R>& sums, const CorrelationConstants<R>& constants,
                                    CorrelationMaps<R>* maps) {
  const R mean_p = sums.p * constants.inverse_volume, mean_t = sums.t * constants.inverse_volume;
  const R cross = sums.pt - mean_p * sums.t;
  const R var_p = sums.pp - mean_p * sums.p, var_t = sums.tt - mean_t * sums.t;
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
