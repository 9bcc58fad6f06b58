// What the CPU kernels of warp and of composition work on.
//
//   locate.inc   coordinates of a vector of output voxels: padding, the voxels around, the shares between them
//   gather.inc   values of the image there
//   rows.inc     forward, and the gradient to the coordinates: runs of output rows
//   scatter.inc  the gradient to the image: each task owns some planes of it
//   kernel.inc   includes these, once per instruction set
//   warp.cpp     the operators: checks, memory, threads
#pragma once

#include <cstdint>

#include "common/dtypes.h"
#include "common/warp_codes.h"

namespace usreg {
namespace warp {

constexpr int64_t kTile = 256;  // voxels of a row that a kernel holds in the first-level cache

// A warp of `batch` images of `channels`; R is the type of images and coordinates. Sizes are those of the axes z, y, x;
// images of fewer dimensions have the last ones, and 1 for the others.
template <class R>
struct Problem {
  Interpolation interpolation;
  Padding padding;
  int dims;
  int64_t batch, channels;
  int64_t image_size[3], output_size[3];

  const R* image;          // (batch, channels, image)
  const void* field;       // (batch, dims, output) of field_dtype, or null
  ScalarType field_dtype;  // R's, or one that is half as wide
  const R* affine;         // (batch, dims, dims + 1), or null
  bool composes;           // the field is added to the values: channels are its components

  R* output;             // forward: (batch, channels, output)
  const R* grad_output;  // backward: the same shape
  void* field_grad;      // (batch, dims, output) of field_dtype, or null
  double* row_sums;      // per output row, dims sums of the coordinates' gradients, and dims times x; or null
  R* image_grad;         // (batch, channels, image)
  bool adds_image_grad;  // to what image_grad holds

  int64_t image_voxels() const { return image_size[0] * image_size[1] * image_size[2]; }
  int64_t output_voxels() const { return output_size[0] * output_size[1] * output_size[2]; }
  int64_t rows() const { return batch * output_size[0] * output_size[1]; }
  int first_axis() const { return 3 - dims; }
};

// The planes of the image, along its first axis, that the voxels of an output row look at; both ends included.
struct Reach {
  int64_t first, last;
};

}  // namespace warp
}  // namespace usreg
