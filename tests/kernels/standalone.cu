// A program without torch: LNCC of a volume with itself, with only the kernel headers. Prints the mean, which is -1.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/lncc/march_forward.cuh"
#include "cuda/lncc/plan.cuh"

namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

float* allocate(int64_t count) {
  float* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(float)));
  return memory;
}

}  // namespace

int main() {
  using namespace usreg::cuda;
  const LnccShape shape = {1, 12, 10, 14};
  const LnccWindow window = {std::vector<double>(7, 1.0), std::vector<double>(7, 1.0), std::vector<double>(7, 1.0),
                             343};
  const MarchPlan plan = plan_march(shape, window, /*multiprocessors=*/2);
  std::vector<float> voxels(shape.voxels());
  for (size_t i = 0; i < voxels.size(); ++i) voxels[i] = static_cast<float>(i * 7919 % 1009) / 1009;
  float* const image = allocate(shape.voxels());
  float* const partials = allocate(plan.grid.blocks());
  float* const loss = allocate(1);
  check(cudaMemcpy(image, voxels.data(), voxels.size() * sizeof(float), cudaMemcpyHostToDevice));

  MarchForwardArguments<float> arguments = {plan.grid, plan.weights, {343, 0, 1e-5}, image, image, {}};
  arguments.outputs.partials = partials;
  Launches launches(nullptr);
  launches.run(lncc_march_forward<3, true, 0, true, float>, plan.grid.blocks(), kMarchThreads,
               block_sum_bytes<float>(kMarchThreads), arguments);
  launch_finish<float>(launches, partials, nullptr, plan.grid.blocks(), 1, static_cast<double>(shape.voxels()), loss,
                       nullptr);
  check(launches.error());
  float mean = 0;
  check(cudaMemcpy(&mean, loss, sizeof(float), cudaMemcpyDeviceToHost));  // waits for the kernels
  std::printf("%.6f\n", mean);
  check(cudaFree(image));
  check(cudaFree(partials));
  check(cudaFree(loss));
  return 0;
}
