// A step of Adam on a displacement field, in place.
//
// Plain, it is one pass: gradient, moments and field are read, moments and field written. Where the longest vector of a
// sample gives the scale, a first pass updates the moments and finds it, and a second one reads the moments and writes
// the field. Blocks have a fixed size, and a maximum is exact: the result has the same bits for any number of threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "common/adam.h"
#include "common/dtypes.h"
#include "common/field_adam_call.h"
#include "cpu/support/capability.h"
#include "cpu/support/memory.h"
#include "cpu/support/parallel.h"
#if USREG_SEVERAL_ISAS
#include <immintrin.h>
#endif

namespace usreg {
namespace {

constexpr int64_t kAdamBlock = 16384;  // values per block, the unit of work of a thread
constexpr int64_t kAdamTile = 512;     // voxels whose squared lengths a kernel holds in the first-level cache

// Signed integers as wide as T, which compare faster than unsigned ones.
template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int32_t;
  static constexpr uint32_t kSign = uint32_t{1} << 31;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
  static constexpr uint64_t kSign = uint64_t{1} << 63;
};

}  // namespace
}  // namespace usreg

#define USREG_KERNEL_BODY "cpu/field_adam/kernel.inc"
#include "cpu/support/for_each_isa.inc"

namespace usreg {
namespace {

template <class T>
struct Pointers {
  const T* grad;
  T* exp_avg;
  T* exp_avg_sq;
  T* field;
};

// Calls function(row, begin, size) for blocks of at most kAdamBlock values of each row, from several threads.
template <class Function>
void for_each_block(int64_t rows, int64_t row_size, const Function& function) {
  const int64_t per_row = (row_size + kAdamBlock - 1) / kAdamBlock;
  const int64_t grain = 2 * kAdamBlock / std::max<int64_t>(1, std::min(kAdamBlock, row_size));
  parallel_for(rows * per_row, grain, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block % per_row * kAdamBlock;
      function(block / per_row, begin, std::min(kAdamBlock, row_size - begin));
    }
  });
}

// Writes the field in rows of (B, n, spatial...), each with a scale of its own.
template <class T, bool kUpdateMoments, bool kReplace>
void write_field(const FieldAdamCall& call, T root, const std::vector<T>& scales, const Pointers<T>& tensors) {
  const auto kernel = USREG_SELECT(field_adam_write<T, kUpdateMoments, kReplace>);
  const AdamRates<T> rates = call.rates<T>();
  const auto rows = static_cast<int64_t>(scales.size());
  const int64_t row_size = rows == 0 ? 0 : call.numel() / rows;
  for_each_block(rows, row_size, [&](int64_t row, int64_t begin, int64_t size) {
    const int64_t place = row * row_size + begin;
    kernel(rates, root, scales[row], tensors.grad + place, tensors.exp_avg + place, tensors.exp_avg_sq + place,
           tensors.field + place, size);
  });
}

// Updates the moments, and returns the scale of each sample.
template <class T>
std::vector<T> scales_of_samples(const FieldAdamCall& call, T root, const Pointers<T>& tensors) {
  const auto kernel = USREG_SELECT(field_adam_longest<T>);
  const AdamRates<T> rates = call.rates<T>();
  const int64_t per_sample = (call.voxels + kAdamBlock - 1) / kAdamBlock;
  std::vector<int64_t> longest(call.samples * per_sample);
  for_each_block(call.samples, call.voxels, [&](int64_t sample, int64_t begin, int64_t size) {
    const int64_t place = sample * call.components * call.voxels + begin;
    longest[sample * per_sample + begin / kAdamBlock] =
        kernel(rates, root, tensors.grad + place, tensors.exp_avg + place, tensors.exp_avg_sq + place, call.components,
               call.voxels, size);
  });
  std::vector<T> scales;
  for (int64_t sample = 0; sample < call.samples; ++sample) {
    const auto first = longest.begin() + sample * per_sample;
    const auto bits =
        static_cast<typename BitsOf<T>::type>(per_sample == 0 ? 0 : *std::max_element(first, first + per_sample));
    T square;
    std::memcpy(&square, &bits, sizeof(square));
    scales.push_back(adam_longest_scale<T>(call.lr, square));
  }
  return scales;
}

template <class T, bool kReplace>
void take_step(const FieldAdamCall& call, double step, const Pointers<T>& tensors) {
  const AdamCorrections<T> corrections = adam_corrections<T>(call.lr, call.beta1, call.beta2, step);
  if (call.longest) {
    const std::vector<T> scales = scales_of_samples<T>(call, corrections.root, tensors);
    write_field<T, false, kReplace>(call, corrections.root, scales, tensors);
  } else {
    write_field<T, true, kReplace>(call, corrections.root, {corrections.plain_scale}, tensors);
  }
}

// Updates exp_avg, exp_avg_sq and step, and writes the update to the field, or adds it.
void field_adam_step(const Tensor& grad, Tensor exp_avg, Tensor exp_avg_sq, Tensor step, Tensor field, double lr,
                     double beta1, double beta2, double eps, bool longest, bool replace) {
  const FieldAdamCall call(grad, exp_avg, exp_avg_sq, step, field, lr, beta1, beta2, eps, longest, replace);
  check_on_cpu(FieldAdamCall::kOp, "grad", grad);
  if (replace) advise_large_pages(field);
  auto* const count = static_cast<float*>(step.mutable_data_ptr());
  *count += 1;
  dispatch_field_adam(grad, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Pointers<T> tensors = {
        static_cast<const T*>(grad.const_data_ptr()), static_cast<T*>(exp_avg.mutable_data_ptr()),
        static_cast<T*>(exp_avg_sq.mutable_data_ptr()), static_cast<T*>(field.mutable_data_ptr())};
    call.replace ? take_step<T, true>(call, *count, tensors) : take_step<T, false>(call, *count, tensors);
  });
}

}  // namespace
}  // namespace usreg

// The schema is in Python (usreg_kernels/ops/field_adam/native.py).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) { m.impl("field_adam_native_step", TORCH_BOX(&usreg::field_adam_step)); }
