// Gaussian smoothing of images and fields. The kernels are explained in gaussian_smooth.h.

#include "cpu/gaussian_smooth/gaussian_smooth.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/checks.h"
#include "common/tensors.h"
#include "cpu/support/capability.h"
#include "cpu/support/memory.h"
#include "cpu/support/parallel.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

#define USREG_KERNEL_BODY "cpu/gaussian_smooth/kernel.inc"
#include "cpu/support/for_each_isa.inc"

namespace usreg {
namespace gaussian_smooth {
namespace {

constexpr const char* kOp = "gaussian_smooth";
constexpr int64_t kVoxelsPerTask = 16384;   // fewer are not worth waking a thread for
constexpr int64_t kCacheBytes = 512 << 10;  // of the second-level cache, for the planes that are summed
constexpr int64_t kColumns = 1024;          // the rows that are summed along y lie in the first-level cache
constexpr int64_t kLeastRows = 16;
constexpr int64_t kMostRows = 128;
constexpr int64_t kAlign = 16;  // elements

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The filters of the axes, and how the work is cut into blocks.
template <class R>
class Plan {
 public:
  Plan(const Tensor& x, const std::vector<double>* const weights[3], Padding padding, bool adjoint, bool converts) {
    const int64_t dims = x.dim() - 2;
    problem_.maps = x.size(0) * x.size(1);
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t given = axis - 3 + dims;
      const AxisFilter filter(*weights[axis], given < 0 ? 1 : x.size(given + 2), padding, adjoint);
      problem_.band[axis] = filter.band;
      rows_[axis].assign(filter.rows.begin(), filter.rows.end());
      problem_.rows[axis] = rows_[axis].data();
      problem_.is_identity[axis] = filter.band.reach == 0 && filter.rows[0] == 1;
    }
    prepare_margins(padding, adjoint);
    cut_into_blocks(converts);
  }

  const Problem<R>& problem() const { return problem_; }

 private:
  // Margins hold what lies outside, or zeros for the adjoint: an element that others repeat then has a row of its own.
  void prepare_margins(Padding padding, bool adjoint) {
    const Band& band = problem_.band[2];
    for (int64_t i = 0; i < 2 * band.reach; ++i) {
      const int64_t place = i < band.reach ? i - band.reach : band.size + i - band.reach;
      margin_.push_back(adjoint ? -1 : source_of_place(place, band.size, padding));
    }
    problem_.margin = margin_.data();
    problem_.fixed = band.has_inside ? 0 : band.size;
    if (!band.has_inside || !adjoint) return;
    const R* const plain = problem_.rows[2] + band.edge * band.taps();
    for (int64_t j = 0; j < band.edge; ++j) {
      const R* const own = problem_.rows[2] + j * band.taps();
      const int64_t first = std::max<int64_t>(0, band.reach - j);
      if (!std::equal(own + first, own + band.taps(), plain + first)) problem_.fixed = j + 1;
    }
  }

  void cut_into_blocks(bool converts) {
    const Band &z = problem_.band[0], &y = problem_.band[1], &x = problem_.band[2];
    const int64_t planes = std::min(z.size, z.taps());
    problem_.block_columns = even_part(x.size, std::max(kColumns, 4 * x.reach));
    problem_.column_blocks = ceil_div(x.size, problem_.block_columns);
    const int64_t columns = std::min(x.size, problem_.block_columns + 2 * x.reach);
    const int64_t in_cache = kCacheBytes / (planes * columns * static_cast<int64_t>(sizeof(R))) - 2 * y.reach;
    const int64_t least = std::max(kLeastRows, 2 * y.reach);
    const int64_t most = z.reach == 0 ? std::max(kMostRows, least) : y.size;
    problem_.block_rows = even_part(y.size, std::max(least, std::min(most, in_cache)));
    problem_.row_blocks = ceil_div(y.size, problem_.block_rows);
    problem_.kept_planes = converts ? planes : 0;
    problem_.pitch = ceil_div(problem_.block_columns + 2 * x.reach, kAlign) * kAlign + kAlign;
  }

  // The length of parts of about the same length, none of them longer than `most`.
  static int64_t even_part(int64_t size, int64_t most) { return ceil_div(size, ceil_div(size, most)); }

  Problem<R> problem_ = {};
  std::vector<R> rows_[3];
  std::vector<int64_t> margin_;
};

// A thread's memory.
template <class R>
class Memory {
 public:
  explicit Memory(const Problem<R>& problem) {
    const Band* const band = problem.band;
    const int64_t planes = problem.kept_planes * problem.rows_with_halo(), ring = band[1].taps();
    numbers_.resize((planes + ring + 3) * problem.pitch);
    pointers_.resize(std::max({band[0].taps(), band[1].taps(), band[2].taps()}) + 2 * ring);
    R* const start = numbers_.data();
    scratch_ = {start,
                start + planes * problem.pitch,
                start + (planes + ring) * problem.pitch,
                start + (planes + ring + 2) * problem.pitch,
                pointers_.data() + 2 * ring,
                pointers_.data()};
  }

  const Scratch<R>& scratch() const { return scratch_; }

 private:
  std::vector<R> numbers_;
  std::vector<const R*> pointers_;
  Scratch<R> scratch_;
};

template <class R, class In, class Out>
void run(const Plan<R>& plan, const Tensor& input, const Tensor& output) {
  const Problem<R>& problem = plan.problem();
  const In* const from = static_cast<const In*>(input.const_data_ptr());
  Out* const to = static_cast<Out*>(output.mutable_data_ptr());
  const auto kernel = USREG_SELECT(smooth<R, In, Out>);
  const int64_t voxels_per_unit = problem.block_rows * problem.block_columns;
  parallel_for(problem.units(), ceil_div(kVoxelsPerTask, voxels_per_unit), [&](int64_t first, int64_t last) {
    const Memory<R> memory(problem);
    kernel(problem, memory.scratch(), from, to, first, last);
  });
}

void check_weights(const std::vector<double>* const weights[3], int64_t dims) {
  for (int axis = 0; axis < 3; ++axis) {
    STD_TORCH_CHECK(!weights[axis]->empty(), kOp, ": an axis needs at least one weight");
    STD_TORCH_CHECK(axis >= 3 - dims || weights[axis]->size() == 1, kOp, ": an axis that is not there has one weight");
  }
}

void check_image(const Tensor& x) {
  check_on_cpu(kOp, "x", x);
  STD_TORCH_CHECK(x.dim() >= 3 && x.dim() <= 5, kOp, ": x must be (B, C, spatial...) with 1, 2 or 3 spatial dims, not ",
                  shape_text(x));
}

// Returns the smoothed image: float64 for float64, else float32. weights: at distances 0, 1, ... along each axis.
Tensor smooth_forward(const Tensor& x, std::vector<double> weights_z, std::vector<double> weights_y,
                      std::vector<double> weights_x, int64_t padding_mode) {
  const std::vector<double>* const weights[3] = {&weights_z, &weights_y, &weights_x};
  const Padding padding = check_padding(kOp, padding_mode);
  check_image(x);
  check_weights(weights, x.dim() - 2);
  const Tensor input = as_contiguous(x);
  Tensor output = new_output(input, input.sizes(), real_dtype(input.scalar_type()));
  if (input.numel() == 0) return output;
  dispatch_floating(input.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    run<R, T, R>(Plan<R>(input, weights, padding, /*adjoint=*/false, sizeof(T) != sizeof(R)), input, output);
  });
  return output;
}

// Returns the gradient of x, of its dtype and shape, which is all that is read of x.
Tensor smooth_backward(const Tensor& grad_output, const Tensor& x, std::vector<double> weights_z,
                       std::vector<double> weights_y, std::vector<double> weights_x, int64_t padding_mode) {
  const std::vector<double>* const weights[3] = {&weights_z, &weights_y, &weights_x};
  const Padding padding = check_padding(kOp, padding_mode);
  check_image(x);
  check_weights(weights, x.dim() - 2);
  check_grad_output(kOp, grad_output, x, true);
  const Tensor input = as_contiguous(grad_output);
  Tensor output = new_output(input, x.sizes(), x.scalar_type());
  if (input.numel() == 0) return output;
  dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    run<R, R, T>(Plan<R>(input, weights, padding, /*adjoint=*/true, false), input, output);
  });
  return output;
}

}  // namespace
}  // namespace gaussian_smooth
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/gaussian_smooth).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) {
  m.impl("gaussian_smooth_native_forward", TORCH_BOX(&usreg::gaussian_smooth::smooth_forward));
  m.impl("gaussian_smooth_native_backward", TORCH_BOX(&usreg::gaussian_smooth::smooth_backward));
}
