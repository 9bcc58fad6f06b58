#include "fibers.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace usreg {
namespace cuda {
alignas(16) unsigned char block_memory[48 << 10];  // shared memory: what a kernel gets without asking for more
}
}  // namespace usreg

namespace cuda_on_cpu {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 << 10;
constexpr uint64_t kPoison = ~uint64_t{0};  // NaN as a float and as a double

int multiprocessor_count = 1;

enum class State { kReady, kAtBarrier, kAtShuffle, kExited };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state = State::kReady;
  Shuffle kind = Shuffle::kIndex;
  unsigned mask = 0;
  int argument = 0, width = 0;
  uint64_t given = 0, received = 0;
};

std::vector<std::unique_ptr<Fiber>> fibers;  // kept from block to block
int current = 0;
ucontext_t scheduler;
[[maybe_unused]] void* scheduler_fake_stack = nullptr;  // these three for AddressSanitizer
[[maybe_unused]] const void* scheduler_stack = nullptr;
[[maybe_unused]] size_t scheduler_stack_size = 0;
const std::function<void()>* kernel = nullptr;

void leave_fiber([[maybe_unused]] bool for_good) {
  Fiber& fiber = *fibers[current];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_size);
#endif
  swapcontext(&fiber.context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fibers[current]->fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  (*kernel)();
  fibers[current]->state = State::kExited;
  leave_fiber(true);
}

void resume(int thread) {
  Fiber& fiber = *fibers[thread];
  current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack.get(), kStack);
#endif
  swapcontext(&scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

[[noreturn]] void fail(int thread, const std::string& what) {
  throw std::runtime_error("block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(thread) + ": " + what);
}

// The lane that a lane reads from.
int source_lane(const Fiber& fiber, int lane) {
  const int first = lane / fiber.width * fiber.width, last = first + fiber.width - 1;
  int source = lane;
  if (fiber.kind == Shuffle::kIndex) source = first + (fiber.argument & (fiber.width - 1));
  if (fiber.kind == Shuffle::kUp) source = lane - fiber.argument;
  if (fiber.kind == Shuffle::kDown) source = lane + fiber.argument;
  return source < first || source > last ? lane : source;
}

// Whether every lane that a waiting one names waits for the same shuffle; throws if one never will.
bool complete(int warp, int lane) {
  const Fiber& fiber = *fibers[warp * kWarp + lane];
  if (!(fiber.mask >> lane & 1)) fail(warp * kWarp + lane, "a shuffle's mask leaves out the calling lane");
  bool all = true;
  for (int other = 0; other < kWarp; ++other) {
    if (!(fiber.mask >> other & 1)) continue;
    const int thread = warp * kWarp + other;
    const bool exists = thread < static_cast<int>(blockDim.x);
    if (!exists || fibers[thread]->state == State::kExited) {
      fail(warp * kWarp + lane, "a shuffle's mask names lane " + std::to_string(other) + ", which is not there");
    }
    all = all && fibers[thread]->state == State::kAtShuffle;
    if (fibers[thread]->state == State::kAtShuffle &&
        (fibers[thread]->mask != fiber.mask || fibers[thread]->kind != fiber.kind)) {
      fail(thread, "the lanes of a warp call different shuffles");
    }
  }
  return all;
}

// Carries out one shuffle of a warp that all of its lanes wait for; whether there was one.
bool exchange(int warp) {
  const int lanes = std::min<int>(kWarp, static_cast<int>(blockDim.x) - warp * kWarp);
  for (int lane = 0; lane < lanes; ++lane) {
    Fiber& first = *fibers[warp * kWarp + lane];
    if (first.state != State::kAtShuffle || !complete(warp, lane)) continue;
    const unsigned mask = first.mask;
    for (int to = 0; to < lanes; ++to) {
      if (!(mask >> to & 1)) continue;
      Fiber& fiber = *fibers[warp * kWarp + to];
      const int from = source_lane(fiber, to);
      fiber.received = mask >> from & 1 ? fibers[warp * kWarp + from]->given : kPoison;
    }
    for (int to = 0; to < lanes; ++to) {
      if (mask >> to & 1) fibers[warp * kWarp + to]->state = State::kReady;
    }
    return true;
  }
  return false;
}

// Lets a block's threads go on from the barrier once all that have not exited are there; whether they do.
bool open_barrier(int threads) {
  bool any = false;
  for (int thread = 0; thread < threads; ++thread) {
    const State state = fibers[thread]->state;
    if (state != State::kAtBarrier && state != State::kExited) return false;
    any = any || state == State::kAtBarrier;
  }
  for (int thread = 0; thread < threads; ++thread) {
    if (fibers[thread]->state == State::kAtBarrier) fibers[thread]->state = State::kReady;
  }
  return any;
}

bool run_warp(int warp, int threads) {
  bool progress = false;
  do {
    for (int thread = warp * kWarp; thread < std::min(threads, (warp + 1) * kWarp); ++thread) {
      if (fibers[thread]->state != State::kReady) continue;
      resume(thread);
      progress = true;
    }
  } while (exchange(warp));
  return progress;
}

void poison_shared_memory(size_t bytes) {
  auto* const memory = usreg::cuda::block_memory;
  if (bytes > sizeof(usreg::cuda::block_memory)) throw std::runtime_error("too much shared memory");
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(memory, sizeof(usreg::cuda::block_memory));
  std::memset(memory, 0xFF, sizeof(usreg::cuda::block_memory));
  ASAN_POISON_MEMORY_REGION(memory + bytes, sizeof(usreg::cuda::block_memory) - bytes);
#else
  std::memset(memory, 0xFF, bytes);
#endif
}

}  // namespace

void wait_for_block() {
  fibers[current]->state = State::kAtBarrier;
  leave_fiber(false);
}

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int argument, int width) {
  Fiber& fiber = *fibers[current];
  fiber.kind = kind;
  fiber.mask = mask;
  fiber.given = bits;
  fiber.argument = argument;
  fiber.width = width;
  fiber.state = State::kAtShuffle;
  leave_fiber(false);
  return fiber.received;
}

void run_block(int threads, size_t shared_bytes, const std::function<void()>& body) {
  while (static_cast<int>(fibers.size()) < threads) fibers.push_back(std::make_unique<Fiber>());
  poison_shared_memory(shared_bytes);
  kernel = &body;
  for (int thread = 0; thread < threads; ++thread) {
    Fiber& fiber = *fibers[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    fiber.state = State::kReady;
  }
  for (bool progress = true; progress;) {
    progress = false;
    for (int warp = 0; warp * kWarp < threads; ++warp) progress = run_warp(warp, threads) || progress;
    progress = open_barrier(threads) || progress;
  }
  for (int thread = 0; thread < threads; ++thread) {
    if (fibers[thread]->state != State::kExited) fail(thread, "waits for threads that never come");
  }
}

int multiprocessors() { return multiprocessor_count; }

}  // namespace cuda_on_cpu

extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_set_multiprocessors(int count) {
  cuda_on_cpu::multiprocessor_count = count;
}
