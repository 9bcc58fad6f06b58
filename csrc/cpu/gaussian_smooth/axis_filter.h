// A symmetric filter along an axis, together with what lies outside of it, as a band matrix: out[j] is the sum over i
// of row(j)[i - j + reach] * in[i], for i on the axis and within reach of j. The adjoint of such a filter is another
// one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/warp_codes.h"

namespace usreg {

// Which voxel of an axis a place repeats; -1 where there are zeros.
inline int64_t source_of_place(int64_t place, int64_t size, Padding padding) {
  if (place >= 0 && place < size) return place;
  if (padding == Padding::kZeros) return -1;
  if (padding == Padding::kBorder || size == 1) return place < 0 ? 0 : size - 1;
  const int64_t period = 2 * (size - 1), within = (place % period + period) % period;
  return within < period - within ? within : period - within;
}

// The shape of the band matrix. There is a row for each element near the ends, and one for all others.
struct Band {
  int64_t size;   // of the axis
  int64_t reach;  // of the filter, or to the other end of the axis
  int64_t edge;   // elements near an end that have rows of their own; all of them, where there are no others
  bool has_inside;

  int64_t taps() const { return 2 * reach + 1; }
  int64_t rows() const { return has_inside ? 2 * edge + 1 : size; }
  int64_t row_of(int64_t j) const {
    if (!has_inside || j < edge) return j;
    return j < size - edge ? edge : j - (size - 2 * edge - 1);
  }
  int64_t element_of(int64_t row) const { return !has_inside || row <= edge ? row : row + (size - 2 * edge - 1); }
};

struct AxisFilter {
  Band band;
  std::vector<double> rows;  // (band.rows(), band.taps())

  // weights: at distances 0, 1, ...; size: of the axis, at least 1.
  AxisFilter(const std::vector<double>& weights, int64_t size, Padding padding, bool adjoint) {
    const int64_t radius = static_cast<int64_t>(weights.size()) - 1, reach = std::min(radius, size - 1);
    band = {size, reach, reach + 1, size > 2 * (reach + 1)};
    if (!band.has_inside) band.edge = size;
    const int64_t taps = band.taps();
    rows.assign(band.rows() * taps, 0.0);
    for (int64_t row = 0; row < band.rows(); ++row) {
      const int64_t j = band.element_of(row);
      for (int64_t k = -radius; k <= radius; ++k) {
        const int64_t i = source_of_place(j + k, size, padding);
        if (i >= 0) rows[row * taps + i - j + reach] += weights[k < 0 ? -k : k];
      }
    }
    if (adjoint) transpose();
  }

 private:
  void transpose() {
    const std::vector<double> given = rows;
    const int64_t taps = band.taps();
    for (int64_t row = 0; row < band.rows(); ++row) {
      const int64_t j = band.element_of(row);
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t i = j + tap - band.reach;
        if (i >= 0 && i < band.size) rows[row * taps + tap] = given[band.row_of(i) * taps + taps - 1 - tap];
      }
    }
  }
};

}  // namespace usreg
