// Tasks of unequal length, each with working memory.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "cpu/support/parallel.h"

namespace usreg {

// Memory for several threads, each with a part of its own.
class Scratch {
 public:
  Scratch(const char* op, int64_t threads, int64_t bytes_per_thread)
      : stride_((bytes_per_thread + kAlign - 1) / kAlign * kAlign) {
    memory_.reset(static_cast<char*>(std::aligned_alloc(kAlign, std::max<int64_t>(kAlign, threads * stride_))));
    STD_TORCH_CHECK(memory_ != nullptr, op, ": out of memory: no ", threads, " x ", stride_,
                    " bytes of working memory for ", threads, " threads");
  }

  void* part(int64_t thread) const { return memory_.get() + thread * stride_; }

 private:
  static constexpr int64_t kAlign = 4096;
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  int64_t stride_;
  std::unique_ptr<char, Free> memory_;
};

// Calls function(index, scratch) for each index below count, from several threads: each takes the next one that is
// free, with `bytes` of uninitialised memory of its own.
template <class Function>
void for_each_task(const char* op, int64_t count, int64_t bytes, const Function& function) {
  const int64_t workers = std::min<int64_t>(torch::stable::get_num_threads(), count);
  const Scratch scratch(op, workers, bytes);
  std::atomic<int64_t> next{0};
  parallel_for(workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      for (int64_t index; (index = next.fetch_add(1)) < count;) function(index, scratch.part(worker));
    }
  });
}

}  // namespace usreg
