#include <algorithm>
#include <limits>

#include "cpu/mind/mind.h"

namespace usreg {
namespace mind {
namespace {

constexpr int64_t kMostBytes = 16 << 20;  // of a task's memory, where it can be helped

int64_t divide_up(int64_t value, int64_t step) { return (value + step - 1) / step; }
int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

Range part(int64_t size, int64_t parts, int64_t index) { return {size * index / parts, size * (index + 1) / parts}; }

// What the largest part of an axis computes.
int64_t computed(const Problem& problem, int axis, int64_t parts) {
  const int64_t beyond = parts == 1 ? 0 : (parts == 2 ? 1 : 2) * problem.slopes_reach(axis);
  return std::min(problem.size[axis], divide_up(problem.size[axis], parts) + beyond);
}

}  // namespace

// The cheapest division that keeps all threads busy, with tasks whose memory stays in the cache.
Plan::Plan(const Problem& problem, int64_t threads, int64_t bytes) {
  constexpr int64_t kLanes = 16, kMostParts = 64;
  double best = std::numeric_limits<double>::infinity();
  for (int64_t y = 1; y <= std::min(problem.size[1], std::max(threads, kMostParts)); ++y) {
    const int64_t rows = divide_up(problem.size[1], y);
    const bool too_large = Layout(problem, rows, kLanes).total * bytes > kMostBytes;
    for (int64_t z = 1; z <= std::min(problem.size[0], threads); ++z) {
      const auto part = static_cast<double>(computed(problem, 0, z) * computed(problem, 1, y));
      const double cost = part * divide_up(problem.volumes * z * y, threads) * (too_large ? 2.0 : 1.0);
      if (cost < best) {
        best = cost;
        z_parts = z;
        y_parts = y;
        most_rows = rows;
      }
    }
  }
  count = problem.volumes * z_parts * y_parts;
}

Task Plan::task(const Problem& problem, int64_t index) const {
  const int64_t y = index % y_parts, z = index / y_parts % z_parts;
  return {index / y_parts / z_parts, part(problem.size[0], z_parts, z), part(problem.size[1], y_parts, y)};
}

Layout::Layout(const Problem& problem, int64_t most_rows, int64_t lanes) {
  const auto window = [&](int64_t reach, int axis) { return std::min(2 * reach + 1, problem.size[axis]); };
  const int64_t beyond = std::max(problem.radius[2], problem.dilation[2]);
  const int64_t gradients_count = (problem.gradient[0] != nullptr) + (problem.gradient[1] != nullptr);
  width = round_up(problem.size[2], lanes);
  margin = round_up(beyond, lanes);
  stride = margin + width + margin;
  block = (problem.pairs - 1) * width;
  gradient_rows = most_rows;
  slope_rows = std::min(problem.size[1], most_rows + 2 * problem.slopes_reach(1));
  image_rows = std::min(problem.size[1], slope_rows + 2 * (problem.radius[1] + problem.dilation[1]));
  image_planes = window(problem.radius[0] + problem.dilation[0], 0);
  ring_rows = window(problem.radius[1], 1);
  slope_planes = window(problem.radius[0], 0);
  gradient_planes = window(problem.dilation[0], 0);

  total = 0;
  const auto take = [&](int64_t elements) {
    const int64_t offset = total;
    total += round_up(elements, lanes) + lanes;  // a vector apart, so that buffers do not start on the same sets
    return offset;
  };
  images = take(problem.images * image_planes * image_rows * stride);
  row_sums = take(problem.images * ring_rows * block);
  distances = take(problem.images * (problem.pairs - 1) * stride);
  values = take(problem.pairs * width);
  row = take(stride);
  weights = take(width);
  mask = take(width);
  slopes = take(gradients_count * slope_planes * slope_rows * block);
  slope_sums = take(gradients_count == 0 ? 0 : ring_rows * block);
  lines = take(gradients_count == 0 ? 0 : (problem.pairs - 1) * stride);
  pulls = take(gradients_count == 0 ? 0 : 3 * stride);
  gradients = take(gradients_count * gradient_planes * gradient_rows * width);
}

}  // namespace mind
}  // namespace usreg
