// Memory of large outputs, which is used again.
//
// The memory of a tensor of more than a few MiB goes back to the system when the tensor is freed, and that of the next
// one comes fresh from there, page by page, filled with zeros first. In a loop that takes as long as the kernels. So
// the memory of a large output is kept when the last tensor that looks at it is freed, and the next output of its size
// takes it. What is kept and what is in use are together never more than what was in use at some time, so a program
// does not need more memory for it at its peak; and never more than kMostKept is kept.
//
// torch 2.10 has no function in its stable ABI that makes a tensor of such memory: there, every output is torch's own.

#include "cpu/support/memory.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <string_view>
#include <vector>

// In the stable ABI since torch 2.11; weak, so that the library also loads where it is missing.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* tensor, int32_t layout, const uint8_t* metadata,
    int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace usreg {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::stable::Tensor;

constexpr uintptr_t kLargePage = uintptr_t{2} << 20, kAlignment = 64;

// Only a hint.
void advise_large_pages(void* memory, uintptr_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t last = (begin + bytes) / kLargePage * kLargePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

uintptr_t bytes_of(IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  uintptr_t bytes = 0;
  dispatch_floating(dtype, "an output", [&](auto tag) { bytes = sizeof(typename decltype(tag)::type); });
  for (const int64_t size : sizes) bytes *= static_cast<uintptr_t>(size);
  return bytes;
}

#if defined(__linux__)

constexpr uintptr_t kLeast = uintptr_t{4} << 20;  // smaller ones come from memory that malloc keeps
constexpr uintptr_t kMostKept = uintptr_t{512} << 20;

// Memory of large outputs: in use, or kept. Sizes are whole numbers of large pages.
class Pool {
 public:
  // There is one, which lives until the process ends: tensors may be freed at any time.
  static Pool& instance() {
    static Pool* const pool = make();
    return *pool;
  }

  // Memory of so many bytes; nullptr where the system has none.
  void* take(uintptr_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    void* memory = nullptr;
    const auto fits = [&](const Block& block) { return block.bytes == bytes; };
    const auto newest = std::find_if(kept_.rbegin(), kept_.rend(), fits);
    if (newest != kept_.rend()) {
      memory = newest->memory;
      kept_bytes_ -= bytes;
      kept_.erase(std::next(newest).base());
    }
    most_used_ = std::max(most_used_, used_ + bytes);
    if (memory == nullptr) {
      keep_at_most(most_used_ - (used_ + bytes));
      memory = std::aligned_alloc(kAlignment, bytes);
      if (memory == nullptr) return nullptr;
      advise_large_pages(memory, bytes);
    }
    used_ += bytes;
    return memory;
  }

  void free_kept() {
    const std::lock_guard<std::mutex> lock(mutex_);
    keep_at_most(0);
  }

  void give_back(void* memory, uintptr_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    used_ -= bytes;
    kept_.push_back({memory, bytes});
    kept_bytes_ += bytes;
    keep_at_most(kMostKept);
  }

 private:
  struct Block {
    void* memory;
    uintptr_t bytes;
  };

  static Pool* make() {
    auto* pool = new Pool;
    // A process that forks while another of its threads is here would leave its child a lock that nobody opens.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
    return pool;
  }

  // Frees what was kept first.
  void keep_at_most(uintptr_t bytes) {
    auto block = kept_.begin();
    for (; kept_bytes_ > bytes; ++block) {
      kept_bytes_ -= block->bytes;
      std::free(block->memory);
    }
    kept_.erase(kept_.begin(), block);
  }

  std::mutex mutex_;
  std::vector<Block> kept_;  // the oldest first
  uintptr_t kept_bytes_ = 0, used_ = 0, most_used_ = 0;
};

bool keeps_memory() {
  static const bool keeps = [] {
    const char* value = std::getenv("USREG_KEEP_MEMORY");
    return torch_from_blob != nullptr && (value == nullptr || std::string_view(value) != "0");
  }();
  return keeps;
}

// A tensor in the pool's memory; none where the system has none.
std::optional<Tensor> in_pool(IntHeaderOnlyArrayRef sizes, ScalarType dtype, uintptr_t needed) {
  const uintptr_t bytes = (needed + kLargePage - 1) / kLargePage * kLargePage;
  void* const memory = Pool::instance().take(bytes);
  if (memory == nullptr) return std::nullopt;
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t axis = sizes.size(); axis > 1; --axis) strides[axis - 2] = strides[axis - 1] * sizes[axis - 1];
  const auto as_int = [](auto value) { return torch::stable::detail::to<int32_t>(torch::stable::detail::from(value)); };
  AtenTensorHandle tensor = nullptr;
  const AOTITorchError error = torch_from_blob(
      memory, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, as_int(dtype),
      as_int(torch::headeronly::DeviceType::CPU), -1, &tensor, as_int(torch::headeronly::Layout::Strided), nullptr, 0,
      [](void* data, void* context) { Pool::instance().give_back(data, reinterpret_cast<uintptr_t>(context)); },
      reinterpret_cast<void*>(bytes));
  if (error == AOTI_TORCH_SUCCESS) return Tensor(tensor);
  Pool::instance().give_back(memory, bytes);
  return std::nullopt;
}

#endif

void free_kept_memory(const Tensor&) {
#if defined(__linux__)
  Pool::instance().free_kept();
#endif
}

}  // namespace

void advise_large_pages(const Tensor& tensor) {
  advise_large_pages(tensor.mutable_data_ptr(), bytes_of(tensor.sizes(), tensor.scalar_type()));
}

Tensor new_output(const Tensor& like, IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
#if defined(__linux__)
  const uintptr_t bytes = bytes_of(sizes, dtype);
  if (bytes >= kLeast && keeps_memory()) {
    if (std::optional<Tensor> output = in_pool(sizes, dtype, bytes)) return *output;
  }
#endif
  Tensor output = torch::stable::new_empty(like, sizes, dtype);
  advise_large_pages(output);
  return output;
}

}  // namespace usreg

// The schema is in Python (usreg_kernels/memory.py).
STABLE_TORCH_LIBRARY_IMPL(usreg, CPU, m) { m.impl("free_kept_memory", TORCH_BOX(&usreg::free_kept_memory)); }
