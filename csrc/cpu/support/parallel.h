// Loops over several threads, in torch's own pool, so that torch.set_num_threads counts.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#if defined(__SANITIZE_THREAD__)
extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace usreg {

// The hand-over of memory from a caller to torch's workers, or back, told to ThreadSanitizer, which cannot see it:
// torch's pool is not compiled with it. Workers stay unordered among themselves, so a race between two of them is
// reported. Each object is global, because a worker must acquire it before it reads anything of its caller's.
class HandOver {
 public:
  void release() {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(this);
#endif
  }
  void acquire() {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(this);
#endif
  }
};
inline HandOver to_workers, to_caller;

// Calls function(first, last) for ranges that together make [0, count), from several threads; a range has no fewer than
// `grain` indices, if there are as many. An error thrown inside loses its text: check arguments before.
template <class Function>
void parallel_for(int64_t count, int64_t grain, const Function& function) {
  const auto task = [&function](int64_t first, int64_t last) {
    to_workers.acquire();
    function(first, last);
    to_caller.release();
  };
  to_workers.release();
  torch::stable::parallel_for(0, count, grain, task);
  to_caller.acquire();
}

}  // namespace usreg
