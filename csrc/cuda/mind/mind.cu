// The MIND-SSC descriptor and the loss of two images' descriptors on GPUs: the launchers of mind.cuh.
//
// The forward pass of a mean or a sum computes the gradients of the sum along with the loss: they share the distances,
// which take most of the time. The gradients of a map are computed by the backward pass.

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/gaussian_smooth/gaussian_smooth.cuh"
#include "cuda/mind/mind.cuh"
#include "cuda/support/torch_support.h"

// Bytes of a slab's maps, where that is planes enough. The tests set fewer.
#ifndef USREG_MIND_WORKSPACE
#define USREG_MIND_WORKSPACE (192 << 20)
#endif

namespace usreg {
namespace cuda {
namespace {

constexpr int64_t kLargestMind = 32;  // of radius and dilation: LARGEST_RADIUS in usreg_kernels/ops/mind_ssc/pairs.py

void check_image(const char* op, const Tensor& image, int64_t radius, int64_t dilation) {
  STD_TORCH_CHECK(image.dim() == 4 || image.dim() == 5, op, ": images must be (B, C, spatial...) with 2 or 3 spatial ",
                  "dims, not ", shape_text(image));
  STD_TORCH_CHECK(0 <= radius && radius <= kLargestMind && 1 <= dilation && dilation <= kLargestMind, op,
                  ": radius must be from 0 to 32 and dilation from 1 to 32, not ", radius, " and ", dilation);
  for (int64_t axis = 2; axis < image.dim(); ++axis) {
    STD_TORCH_CHECK(image.size(axis) < (int64_t{1} << 31) - 2 * kLargestMind, op, ": an axis of ", image.size(axis),
                    " voxels is too long");
  }
}

// The volumes of images (B, C, spatial...), and how kernels go through them.
template <int kDims, class T>
class MindMarch {
 public:
  using R = Real<T>;
  static constexpr int kAxes = kDims, kPairs = kMindPairs<kDims>;

  // image: with voxels.
  MindMarch(const char* op, TensorLaunches& launches, const Tensor& image, int64_t radius, int64_t dilation)
      : op_(op), launches_(launches), like_(image), count_(image.size(0) * image.size(1)) {
    volumes_.depth = static_cast<int>(image.size(2));
    volumes_.height = kDims == 3 ? static_cast<int>(image.size(3)) : 1;
    volumes_.width = static_cast<int>(image.size(image.dim() - 1));
    volumes_.radius = static_cast<int>(radius);
    volumes_.dilation = static_cast<int>(dilation);
  }

  const MindVolumes& volumes() const { return volumes_; }
  // How far beyond a slab its gradient needs slopes.
  int slopes_reach() const { return volumes_.radius + volumes_.dilation; }
  R scale() const { return static_cast<R>(1.0 / ((2.0 * volumes_.radius + 1) * (2.0 * volumes_.radius + 1))); }

  MindPlanes widened(MindPlanes planes, int reach) const {
    planes.begin = std::max(planes.begin - reach, 0);
    planes.end = std::min(planes.end + reach, volumes_.depth);
    return planes;
  }

  // Slabs whose maps, in so many buffers, fit the workspace along with those of the planes around them.
  std::vector<MindPlanes> slabs(int64_t buffers, int64_t reach) const {
    constexpr auto kSize = static_cast<int64_t>(sizeof(R));
    const int64_t depth = volumes_.depth, most = USREG_MIND_WORKSPACE / (kSize * buffers * kPairs * volumes_.plane());
    std::vector<MindPlanes> found;
    if (depth <= most) {
      const int64_t together = most / depth;
      for (int64_t volume = 0; volume < count_; volume += together) {
        found.push_back({volume, std::min(together, count_ - volume), 0, volumes_.depth});
      }
      return found;
    }
    const int64_t parts = ceil_div(depth, std::max({most - 2 * reach, 2 * reach, int64_t{1}}));
    for (int64_t volume = 0; volume < count_; ++volume) {
      for (int64_t part = 0; part < parts; ++part) {
        found.push_back(
            {volume, 1, static_cast<int>(depth * part / parts), static_cast<int>(depth * (part + 1) / parts)});
      }
    }
    for (const MindPlanes& slab : found) {
      const int64_t voxels = widened(slab, static_cast<int>(reach)).size() * volumes_.plane();
      STD_TORCH_CHECK(voxels < int64_t{1} << 31, op_, ": the planes that are computed at once have ", voxels,
                      " voxels, and 2^31 - 1 are the most: give images of smaller planes, or a smaller radius and ",
                      "dilation");
    }
    return found;
  }

  // Memory for the maps of any slab with the planes around it.
  std::vector<Tensor> buffers(const std::vector<MindPlanes>& slabs, int count, int reach) const {
    int64_t planes = 0;
    for (const MindPlanes& slab : slabs) planes = std::max(planes, slab.volumes * widened(slab, reach).size());
    std::vector<Tensor> found;
    for (int i = 0; i < count; ++i) found.push_back(new_real({planes * volumes_.plane() * kPairs}));
    return found;
  }

  Tensor new_real(std::vector<int64_t> sizes) const {
    return torch::stable::new_empty(like_, sizes, real_dtype(like_.scalar_type()));
  }

  int64_t blocks(const MindPlanes& planes) const { return planes.volumes * volumes_.pieces(planes); }

  // Runs a kernel over planes: kernel(volumes, planes, arguments...).
  template <class Kernel, class... Arguments>
  void run(Kernel kernel, const MindPlanes& planes, size_t shared, Arguments... arguments) {
    launches_.run(kernel, blocks(planes), kMindThreads, shared, volumes_, planes, arguments...);
  }

  // Fills sums with the squared differences, added up along z and averaged along y.
  void sum_z_y(const T* image, const MindPlanes& planes, R* spare, R* sums) {
    run(mind_sum_z<kDims, T>, planes, 0, image, filters_y() ? spare : sums);
    if (filters_y()) filter(spare, sums, planes, /*along_y=*/true, /*adjoint=*/false);
  }

  // The mean of V of each volume.
  Tensor mean_variances(const T* image) {
    const std::vector<MindPlanes> slabs = this->slabs(2, 0);
    const std::vector<Tensor> memory = buffers(slabs, 2, 0);
    R* const spare = mutable_data<R>(memory[0]);
    R* const sums = mutable_data<R>(memory[1]);
    int64_t stride = 0;  // partial sums of a volume
    for (const MindPlanes& slab : slabs) stride += slab.volume == 0 ? volumes_.pieces(slab) : 0;
    const Tensor partials = new_real({count_ * stride}), means = new_real({count_});
    int64_t first = 0;
    for (const MindPlanes& slab : slabs) {
      if (slab.begin == 0) first = slab.volume * stride;
      sum_z_y(image, slab, spare, sums);
      run(mind_add_variances<kDims, R>, slab, block_sum_bytes<R>(kMindThreads), static_cast<const R*>(sums), scale(),
          stride, mutable_data<R>(partials) + first);
      first += volumes_.pieces(slab);
    }
    launches_.run(mind_average<R>, count_, kMindAverageThreads, block_sum_bytes<double>(kMindAverageThreads),
                  data<R>(partials), stride, static_cast<double>(volumes_.voxels()), mutable_data<R>(means));
    return means;
  }

  // Writes the gradient of a slab, from the slopes of the slab and the planes around it; both buffers are overwritten.
  template <class Out>
  void write_gradient(const T* image, R* slopes, R* spare, const MindPlanes& slab, Out* gradient) {
    const MindPlanes wide = widened(slab, slopes_reach()), near = widened(slab, volumes_.dilation);
    if (volumes_.radius > 0) {
      filter(slopes, spare, wide, /*along_y=*/false, /*adjoint=*/true);
      std::swap(slopes, spare);
    }
    if (filters_y()) {
      filter(slopes, spare, wide, /*along_y=*/true, /*adjoint=*/true);
      std::swap(slopes, spare);
    }
    run(mind_pull<kDims, T>, near, 0, wide, image, static_cast<const R*>(slopes),
        static_cast<R>(2.0 / (2 * volumes_.radius + 1)), spare);
    run(mind_gather<kDims, R, Out>, slab, 0, near, static_cast<const R*>(spare), gradient);
  }

 private:
  bool filters_y() const { return kDims == 3 && volumes_.radius > 0; }

  // Averages maps along an axis, or the adjoint of that.
  void filter(const R* source, R* target, const MindPlanes& planes, bool along_y, bool adjoint) {
    const int64_t rows = planes.volumes * planes.size();
    SmoothingAxis<R> axis = {rows,
                             volumes_.height,
                             static_cast<int64_t>(kPairs) * volumes_.width,
                             volumes_.radius,
                             Outside::kBorder,
                             adjoint,
                             {},
                             {}};
    if (!along_y) {
      axis.outer = rows * volumes_.height * kPairs;
      axis.size = volumes_.width;
      axis.width = 1;
    }
    for (int k = 0; k <= volumes_.radius; ++k) {
      axis.weights[k] = static_cast<R>(1.0 / (2 * volumes_.radius + 1));
      axis.tails[k] = static_cast<R>((volumes_.radius - k) / (2.0 * volumes_.radius + 1));
    }
    launch_filter(launches_, axis, source, target);
  }

  const char* const op_;
  TensorLaunches& launches_;
  const Tensor& like_;
  const int64_t count_;
  MindVolumes volumes_ = {};
};

// Calls function(march, TypeTag<T>()) for the images' dtype and dims.
template <class Function>
void with_march(const char* op, TensorLaunches& launches, const Tensor& image, int64_t radius, int64_t dilation,
                const Function& function) {
  dispatch_elements(image.scalar_type(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (image.dim() == 5) {
      MindMarch<3, T> march(op, launches, image, radius, dilation);
      function(march, tag);
    } else {
      MindMarch<2, T> march(op, launches, image, radius, dilation);
      function(march, tag);
    }
  });
  launches.check(op);
}

// ---- the descriptor -------------------------------------------------------------------------------------------------

constexpr const char* kDescriptor = "mind_ssc";

std::vector<int64_t> descriptor_sizes(const Tensor& image) {
  std::vector<int64_t> sizes = {image.size(0), image.size(1) * (image.dim() == 4 ? kMindPairs<2> : kMindPairs<3>)};
  for (int64_t axis = 2; axis < image.dim(); ++axis) sizes.push_back(image.size(axis));
  return sizes;
}

// Returns (B, K C, spatial...), float64 for float64 images, else float32.
Tensor descriptor_forward(const Tensor& image_arg, int64_t radius, int64_t dilation) {
  check_image(kDescriptor, image_arg, radius, dilation);
  const Tensor image = as_contiguous(image_arg);
  Tensor output = torch::stable::new_empty(image, descriptor_sizes(image), real_dtype(image.scalar_type()));
  if (image.numel() == 0) return output;
  TensorLaunches launches(image);
  with_march(kDescriptor, launches, image, radius, dilation, [&](auto& march, auto tag) {
    using March = std::remove_reference_t<decltype(march)>;
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const Tensor means = march.mean_variances(data<T>(image));
    const std::vector<MindPlanes> slabs = march.slabs(2, 0);
    const std::vector<Tensor> memory = march.buffers(slabs, 2, 0);
    for (const MindPlanes& slab : slabs) {
      march.sum_z_y(data<T>(image), slab, mutable_data<R>(memory[0]), mutable_data<R>(memory[1]));
      march.run(mind_write_descriptor<March::kAxes, R>, slab, 0, data<R>(memory[1]), march.scale(), data<R>(means),
                mutable_data<R>(output));
    }
  });
  return output;
}

// Returns the gradient, of the image's dtype and shape. grad_output: of the descriptor's dtype and shape.
Tensor descriptor_backward(const Tensor& grad_output, const Tensor& image_arg, int64_t radius, int64_t dilation) {
  check_image(kDescriptor, image_arg, radius, dilation);
  check_same_device(kDescriptor, "grad_output", grad_output, image_arg);
  check_dtype(kDescriptor, "grad_output", grad_output, real_dtype(image_arg.scalar_type()));
  const std::vector<int64_t> sizes = descriptor_sizes(image_arg);
  bool fits = grad_output.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = grad_output.size(i) == sizes[i];
  STD_TORCH_CHECK(fits, kDescriptor, ": grad_output must have the shape of the output, not ", shape_text(grad_output));
  const Tensor image = as_contiguous(image_arg), grad = as_contiguous(grad_output);
  Tensor gradient = torch::stable::new_empty(image, image.sizes());
  if (image.numel() == 0) return gradient;
  TensorLaunches launches(image);
  with_march(kDescriptor, launches, image, radius, dilation, [&](auto& march, auto tag) {
    using March = std::remove_reference_t<decltype(march)>;
    using T = typename decltype(tag)::type;
    using R = Real<T>;
    const Tensor means = march.mean_variances(data<T>(image));
    const int reach = march.slopes_reach();
    const std::vector<MindPlanes> slabs = march.slabs(2, reach);
    const std::vector<Tensor> memory = march.buffers(slabs, 2, reach);
    R* const spare = mutable_data<R>(memory[0]);
    R* const sums = mutable_data<R>(memory[1]);
    for (const MindPlanes& slab : slabs) {
      const MindPlanes wide = march.widened(slab, reach);
      march.sum_z_y(data<T>(image), wide, spare, sums);
      march.run(mind_write_slopes<March::kAxes, R>, wide, 0, static_cast<const R*>(sums), march.scale(), data<R>(means),
                data<R>(grad), spare);
      march.write_gradient(data<T>(image), spare, sums, slab, mutable_data<T>(gradient));
    }
  });
  return gradient;
}

// ---- the loss -------------------------------------------------------------------------------------------------------

constexpr const char* kLoss = "mind";

// The arguments that forward and backward share, checked.
struct LossCall {
  LossCall(const Tensor& pred_arg, const Tensor& target_arg, const std::optional<Tensor>& mask_arg, int64_t radius_arg,
           int64_t dilation_arg)
      : radius(radius_arg), dilation(dilation_arg) {
    check_pair(kLoss, "pred", pred_arg, "target", target_arg);
    check_image(kLoss, pred_arg, radius, dilation);
    if (mask_arg.has_value()) check_mask(kLoss, *mask_arg, pred_arg);
    images[0] = as_contiguous(pred_arg);
    images[1] = as_contiguous(target_arg);
    mask = as_contiguous(mask_arg);
  }

  Tensor images[2];
  std::optional<Tensor> mask;
  int64_t radius, dilation;
};

using Gradients = std::optional<Tensor>[2];

// Fills the loss map and the gradients that there are; returns partial sums of the loss and of the mask, (2, n), where
// there is neither map.
template <class Out, class March, class T>
std::optional<Tensor> run_loss(const LossCall& call, March& march, const std::optional<Tensor>& grad_map,
                               const std::optional<Tensor>& loss_map, const Gradients& gradients, TypeTag<T>) {
  using R = Real<T>;
  const bool has_slopes = gradients[0].has_value() || gradients[1].has_value();
  const bool has_both = gradients[0].has_value() && gradients[1].has_value();
  MindComparison<R> comparison = {};
  Tensor means[2];
  for (int i = 0; i < 2; ++i) {
    means[i] = march.mean_variances(data<T>(call.images[i]));
    comparison.means[i] = data<R>(means[i]);
  }
  const int reach = has_slopes ? march.slopes_reach() : 0, buffers = has_both ? 4 : 3;
  const std::vector<MindPlanes> slabs = march.slabs(buffers, reach);
  const std::vector<Tensor> memory = march.buffers(slabs, buffers, reach);
  R* sums[2] = {mutable_data<R>(memory[1]), mutable_data<R>(memory[2])};
  R* const spare = mutable_data<R>(memory[0]);
  for (int i = 0; i < 2; ++i) {
    comparison.sums[i] = sums[i];
    if (gradients[i].has_value()) comparison.slopes[i] = has_both && i == 1 ? mutable_data<R>(memory[3]) : spare;
  }
  comparison.mask = data<R>(call.mask);
  comparison.channels_per_mask = call.mask.has_value() ? call.images[0].size(1) / call.mask->size(1) : 1;
  comparison.grad_map = data<R>(grad_map);
  comparison.loss_map = mutable_data<R>(loss_map);
  std::optional<Tensor> partials;
  if (!grad_map.has_value() && !loss_map.has_value()) {
    int64_t blocks = 0;
    for (const MindPlanes& slab : slabs) blocks += march.blocks(march.widened(slab, reach));
    partials = march.new_real({2, blocks});
    comparison.partials = mutable_data<R>(partials);
    comparison.weights = comparison.partials + blocks;
  }
  const size_t shared = block_sum_bytes<R>(kMindThreads);
  for (const MindPlanes& slab : slabs) {
    const MindPlanes wide = march.widened(slab, reach);
    for (int i = 0; i < 2; ++i) march.sum_z_y(data<T>(call.images[i]), wide, spare, sums[i]);
    if (has_slopes) {
      march.run(mind_compare<March::kAxes, true, R>, wide, shared, slab.begin, slab.end, march.scale(), comparison);
    } else {
      march.run(mind_compare<March::kAxes, false, R>, wide, shared, slab.begin, slab.end, march.scale(), comparison);
    }
    if (partials.has_value()) {
      comparison.partials += march.blocks(wide);
      comparison.weights += march.blocks(wide);
    }
    for (int i = 0; i < 2; ++i) {
      if (!gradients[i].has_value()) continue;
      march.write_gradient(data<T>(call.images[i]), comparison.slopes[i], sums[0], slab,
                           mutable_data<Out>(gradients[i]));
    }
  }
  return partials;
}

// Returns (loss, divisor, gradient to pred, gradient to target). loss: scalar for mean and sum, of the images' shape
// for none; float64 for float64 images, else float32. divisor: float64 scalar, what the sum was divided by. Gradients:
// those of the sum, of the loss' dtype; none where not asked for, which they cannot be for a map.
std::tuple<Tensor, Tensor, std::optional<Tensor>, std::optional<Tensor>> loss_forward(
    const Tensor& pred, const Tensor& target, const std::optional<Tensor>& mask, int64_t radius, int64_t dilation,
    int64_t reduction_value, bool pred_grad, bool target_grad) {
  const Reduction reduction = check_reduction(kLoss, reduction_value);
  const bool keep_map = reduction == Reduction::kNone;
  STD_TORCH_CHECK(!(keep_map && (pred_grad || target_grad)), kLoss, ": the gradient of a map needs grad_output first");
  const LossCall call(pred, target, mask, radius, dilation);
  const ScalarType real = real_dtype(pred.scalar_type());
  Tensor loss =
      keep_map ? torch::stable::new_empty(pred, pred.sizes(), real) : torch::stable::new_empty(pred, {}, real);
  Tensor divisor = torch::stable::new_empty(pred, {}, ScalarType::Double);
  Gradients gradients;
  if (pred_grad) gradients[0] = torch::stable::new_empty(pred, pred.sizes(), real);
  if (target_grad) gradients[1] = torch::stable::new_empty(pred, pred.sizes(), real);
  if (keep_map || pred.numel() == 0) torch::stable::fill_(divisor, 1);
  if (pred.numel() == 0) {
    fill_empty_loss(loss, reduction);
    return {loss, divisor, gradients[0], gradients[1]};
  }
  TensorLaunches launches(call.images[0]);
  with_march(kLoss, launches, call.images[0], radius, dilation, [&](auto& march, auto tag) {
    using R = Real<typename decltype(tag)::type>;
    const std::optional<Tensor> loss_map = keep_map ? std::optional<Tensor>(loss) : std::nullopt;
    const std::optional<Tensor> partials = run_loss<R>(call, march, std::nullopt, loss_map, gradients, tag);
    if (!partials.has_value()) return;
    const bool mean = reduction == Reduction::kMean;
    const int64_t count = partials->size(1);
    const R* const sums = data<R>(partials);
    launch_finish<R>(launches, sums, mean && call.mask.has_value() ? sums + count : nullptr, count, 1,
                     mean ? static_cast<double>(pred.numel()) : 1, mutable_data<R>(loss),
                     mutable_data<double>(divisor));
  });
  return {loss, divisor, gradients[0], gradients[1]};
}

// Returns the gradients of a map to pred and target, of the images' dtype and shape; none where not asked for.
// grad_output: of the map's dtype and shape.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> loss_backward(const Tensor& grad_output, const Tensor& pred,
                                                                       const Tensor& target,
                                                                       const std::optional<Tensor>& mask,
                                                                       int64_t radius, int64_t dilation, bool pred_grad,
                                                                       bool target_grad) {
  const LossCall call(pred, target, mask, radius, dilation);
  check_grad_output(kLoss, grad_output, pred, /*has_map=*/true);
  const Gradients gradients = {new_gradient(call.images[0], pred_grad), new_gradient(call.images[1], target_grad)};
  if (pred.numel() == 0 || !(pred_grad || target_grad)) return {gradients[0], gradients[1]};
  const std::optional<Tensor> grad_map = as_contiguous(grad_output);
  TensorLaunches launches(call.images[0]);
  with_march(kLoss, launches, call.images[0], radius, dilation, [&](auto& march, auto tag) {
    using T = typename decltype(tag)::type;
    run_loss<T>(call, march, grad_map, std::nullopt, gradients, tag);
  });
  return {gradients[0], gradients[1]};
}

}  // namespace
}  // namespace cuda
}  // namespace usreg

// The schemas are in Python (usreg_kernels/ops/mind and mind_ssc).
STABLE_TORCH_LIBRARY_IMPL(usreg, USREG_DISPATCH_KEY, m) {
  m.impl("mind_ssc_native_forward", TORCH_BOX(&usreg::cuda::descriptor_forward));
  m.impl("mind_ssc_native_backward", TORCH_BOX(&usreg::cuda::descriptor_backward));
  m.impl("mind_cuda_forward", TORCH_BOX(&usreg::cuda::loss_forward));
  m.impl("mind_cuda_backward", TORCH_BOX(&usreg::cuda::loss_backward));
}
