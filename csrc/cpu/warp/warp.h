// What the CPU kernels of warp and of composition work on.
//
// The voxels of the output are cut into tiles. A kernel finds where those of a tile look, and keeps that in the
// first-level cache while it goes through the channels.
//
//   locate.inc       coordinates along an axis: padding, the voxels around, the shares between them
//   tile.inc         where the voxels of a tile look
//   cell.inc         the values of the image around these places, and between them
//   interpolate.inc  forward, and the gradient to the coordinates: runs of tiles
//   scatter.inc      the gradient to the image: each task owns some planes of it
//   kernel.inc       includes these, once per instruction set
//   warp.cpp         the operators: checks, memory, threads
#pragma once

#include <cstdint>

#include "common/dtypes.h"
#include "common/warp_codes.h"

namespace usreg {
namespace warp {

constexpr int64_t kTile = 256;  // voxels; the places of a tile take 32 bytes a voxel

// Of an image's channels, as many are warped together as their next planes fit into a second-level cache: voxels that
// lie behind each other look at the same planes. All of them, where they have the fewest.
constexpr int64_t kPlanesInReach = 8, kCachedBytes = 2 << 20, kFewestTogether = 3;

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
  double* affine_sums;   // (tiles, dims, dims + 1): each tile's part of the gradient to the affine; or null
  R* image_grad;         // (batch, channels, image)
  bool adds_image_grad;  // to what image_grad holds

  int64_t image_voxels() const { return image_size[0] * image_size[1] * image_size[2]; }
  int64_t output_voxels() const { return output_size[0] * output_size[1] * output_size[2]; }
  int64_t tiles_per_image() const { return (output_voxels() + kTile - 1) / kTile; }
  int64_t tiles() const { return batch * tiles_per_image(); }
  int first_axis() const { return 3 - dims; }

  // Channels that are warped together: groups of nearly the same size.
  int64_t channels_together() const {
    const int64_t window = kPlanesInReach * image_size[1] * image_size[2] * static_cast<int64_t>(sizeof(R));
    int64_t most = window > 0 ? kCachedBytes / window : channels;
    if (most < kFewestTogether) most = kFewestTogether;
    const int64_t groups = (channels + most - 1) / most;
    return groups > 1 ? (channels + groups - 1) / groups : channels;
  }
};

// The planes of the image, along its first axis, that the voxels of a tile look at; both ends included.
struct Reach {
  int64_t first, last;
};

}  // namespace warp
}  // namespace usreg
