// A program without torch: LNCC of a volume with itself, by the kernel headers alone. Prints the mean, which is -1.
#include <cstdio>

#include "cuda/lncc_march_forward.cuh"
#include "cuda/lncc_plan.cuh"

int main() {
  using namespace usreg::cuda;
  const LnccShape shape = {1, 12, 10, 14};
  const LnccWindow window = {std::vector<double>(7, 1.0), std::vector<double>(7, 1.0), std::vector<double>(7, 1.0),
                             343};
  const MarchPlan plan = plan_march(shape, window, /*multiprocessors=*/2);
  float *image, *partials, *loss;
  cudaMallocManaged(&image, shape.voxels() * sizeof(float));
  cudaMallocManaged(&partials, plan.grid.blocks() * sizeof(float));
  cudaMallocManaged(&loss, sizeof(float));
  for (int64_t i = 0; i < shape.voxels(); ++i) image[i] = static_cast<float>(i * 7919 % 1009) / 1009;

  MarchForwardArguments<float> arguments = {plan.grid, plan.weights, {343, 0, 1e-5}, image, image, {}};
  arguments.outputs.partials = partials;
  Launches launches(nullptr);
  launches.run(lncc_march_forward<3, true, 0, true, float>, plan.grid.blocks(), kMarchThreads,
               block_sum_bytes<float>(kMarchThreads), arguments);
  launch_finish<float>(launches, partials, nullptr, plan.grid.blocks(), 1, static_cast<double>(shape.voxels()), loss,
                       nullptr);
  cudaDeviceSynchronize();
  std::printf("%.6f\n", *loss);
  cudaFree(image);
  cudaFree(partials);
  cudaFree(loss);
  return launches.error() == cudaSuccess ? 0 : 1;
}
