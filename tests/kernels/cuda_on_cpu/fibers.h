// The threads of a CUDA block as fibers: each runs until it meets others, at a barrier or a shuffle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace cuda_on_cpu {

enum class Shuffle { kIndex, kUp, kDown };

// Runs body in every thread of a block, with shared_bytes of shared memory full of NaN. Throws std::runtime_error where
// CUDA's behaviour is undefined: a shuffle that names a thread which has exited or is elsewhere, or a barrier that not
// all threads reach.
void run_block(int threads, size_t shared_bytes, const std::function<void()>& body);

// __syncthreads.
void wait_for_block();

// __shfl_*_sync on the bits of a value; a lane that reads from one which its mask leaves out gets NaN.
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int argument, int width);

int multiprocessors();

}  // namespace cuda_on_cpu
