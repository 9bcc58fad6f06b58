#include <algorithm>
#include <limits>

#include "cpu/lncc/lncc.h"

namespace usreg {
namespace lncc {
namespace {

constexpr int64_t kRows = 4;              // per block, for small windows: a multiple of 2r
constexpr int64_t kMaxZState = 10 << 20;  // bytes that a task may keep between blocks of planes

int64_t divide_up(int64_t value, int64_t step) { return (value + step - 1) / step; }
int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

// A division of blocks into parts that compute about as many each, though each but the first repeats `before` blocks of
// the one before: the first has so many more of its own.
class Division {
 public:
  Division(int64_t blocks, int64_t parts, int64_t before)
      : blocks_(blocks), parts_(parts), before_(parts == 1 ? 0 : std::min(before, blocks)) {}

  // What the largest part computes, which is as much as the first one's own.
  int64_t largest() const { return before_ + divide_up(blocks_ - before_, parts_); }

  Range part(int64_t index) const { return {begin(index), begin(index + 1)}; }

 private:
  int64_t begin(int64_t index) const { return index == 0 ? 0 : before_ + (blocks_ - before_) * index / parts_; }

  int64_t blocks_, parts_, before_;
};

// Planes that the sums along z keep from block to block.
int64_t kept_planes(const AxisWindow& window, const Plan& plan) {
  return window.rectangular && window.size == 3 ? 2 : divide_up(2 * window.radius(), plan.planes) * plan.planes;
}

}  // namespace

Plan::Plan(const Problem& problem, int64_t real_size, int64_t threads) {
  const int64_t z_radius = problem.window[0].radius(), y_radius = problem.window[1].radius();
  map_count = problem.target_grad != nullptr ? 5 : problem.pred_grad != nullptr ? 3 : 0;
  planes = z_radius == 0 ? 1 : kPlanes;
  rows = y_radius <= 2 ? kRows : y_radius;
  z_before = map_count > 0 ? divide_up(2 * z_radius, planes) : 0;
  y_first = divide_up(2 * y_radius, rows);
  y_before = map_count > 0 ? y_first : 0;
  z_blocks = divide_up(problem.depth + (map_count > 0 ? z_radius : 0), planes);
  y_blocks = divide_up(problem.height + (map_count > 0 ? y_radius : 0), rows);
  z_parts = y_parts = 1;

  // The cheapest division that keeps all threads busy: each part computes blocks before its own too.
  const int64_t y_more = y_before + y_first;
  const int64_t row_bytes = kept_planes(problem.window[0], *this) * map_count * problem.width * real_size;
  double best = std::numeric_limits<double>::infinity();
  for (int64_t y = 1; y <= std::min(y_blocks, std::max<int64_t>(threads, 64)); ++y) {
    const int64_t y_size = Division(y_blocks, y, y_more).largest();
    const bool too_large = y_size * rows * row_bytes > kMaxZState;
    for (int64_t z = 1; z <= std::min(z_blocks, threads); ++z) {
      const auto part = static_cast<double>(Division(z_blocks, z, z_before).largest() * y_size);
      const double cost = part * divide_up(problem.channels * z * y, threads) * (too_large ? 1e6 * y_size : 1);
      if (cost < best) {
        best = cost;
        z_parts = z;
        y_parts = y;
      }
    }
  }
  tasks = problem.channels * z_parts * y_parts;
}

Task Plan::task(int64_t index) const {
  const int64_t y = index % y_parts, z = index / y_parts % z_parts;
  return {index / y_parts / z_parts, Division(z_blocks, z_parts, z_before).part(z),
          Division(y_blocks, y_parts, y_before + y_first).part(y)};
}

Layout::Layout(const Problem& problem, const Plan& plan, int64_t real_size, int64_t vector_bytes) {
  const int64_t doubles = vector_bytes / 8, reals = vector_bytes / real_size, tile = kTile;
  const int64_t radius = problem.window[2].radius(), neighbours = 2 * problem.window[1].radius();
  const int64_t around = plan.planes + 2 * problem.window[0].radius();
  const int64_t beyond = 3;  // vectors that sums along x may read without use
  width = round_up(problem.width, reals);
  margin = round_up(radius, reals);
  stride = margin + width + margin + beyond * reals;
  lag = round_up(radius, doubles);
  carry = round_up(lag + radius, doubles);
  line = carry + tile;
  strip = tile + lag;
  tiles = divide_up(problem.width, tile);
  z_state_row = kept_planes(problem.window[0], plan) * plan.map_count * width;

  bytes = 0;
  const auto take = [&](int64_t count, int64_t size) {
    const int64_t offset = bytes;
    bytes += round_up(count * size, 64) + 64;  // a cache line apart, so that buffers do not start on the same sets
    return offset;
  };
  const int64_t sum_lines = plan.planes * kSums, map_rows = plan.planes * plan.map_count;
  input_planes = take(2 * around, sizeof(void*));
  zero_count = kStaged;
  zeros = take(zero_count, sizeof(double));
  staged = take(2 * around * kStaged, real_size);
  lines = take(plan.rows * sum_lines * strip, sizeof(double));
  y_state = take(tiles * sum_lines * neighbours * strip, sizeof(double));
  sums = take(plan.rows * kSums * line + beyond * doubles, sizeof(double));
  carries = take(plan.rows * sum_lines * carry, sizeof(double));
  x_sums = take(plan.rows * kSums * tile, sizeof(double));
  x_buffer = take(line + carry + beyond * doubles, sizeof(double));

  maps = take(map_rows * plan.rows * stride, real_size);
  map_sums = take(plan.rows * stride, real_size);
  map_x_buffer = take(stride, real_size);
  map_state = take(map_rows * neighbours * stride, real_size);
  joined = take(map_rows * plan.rows * width, real_size);
  gradient_rows = take(4 * plan.planes * width, real_size);
  const int64_t y_size = Division(plan.y_blocks, plan.y_parts, plan.y_before + plan.y_first).largest();
  z_state = take(y_size * plan.rows * z_state_row, real_size);
}

}  // namespace lncc
}  // namespace usreg
