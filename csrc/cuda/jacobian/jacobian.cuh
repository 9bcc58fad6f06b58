// The Jacobian determinant of x + ddf(x), and the folding loss made of it, on GPUs: a pass over the field for the
// values, and one for the gradient. Nothing is saved.
//
// A thread owns one position (y, x) of a field and goes along z through a chunk of planes, so that it knows from the
// start which neighbours along y and x there are. All components are its own.
//
// The gradient gathers: a voxel enters the derivatives of its neighbours, whose cofactors are computed again from
// values that the caches hold. At a border it enters its own, which is as if the neighbour were the voxel itself, with
// the other sign. The folding loss first writes the slope of each voxel, 0 wherever the field does not fold; the
// gradient then reads the field only around the others.
#pragma once

#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"
#include "cuda/support/reduction.cuh"

namespace usreg {
namespace cuda {

constexpr int kJacobianThreads = 128;

// Fields of elements T. Sizes are those of the axes z, y, x; fields of fewer dimensions have the last ones, and 1 for
// the others.
template <class T>
struct JacobianField {
  using R = Real<T>;
  const T* field;  // (batch, dims, z, y, x)
  int64_t batch;
  int64_t size[3];
  R scale[3];  // what multiplies the derivatives along each axis
  // A block takes a piece of each plane of a chunk.
  int chunk;  // planes
  unsigned pieces, chunks;

  int64_t blocks() const { return batch * chunks * pieces; }
  __host__ __device__ int64_t plane() const { return size[1] * size[2]; }
  __host__ __device__ int64_t voxels() const { return size[0] * plane(); }
};

// From a voxel to its neighbour along an axis, and planes: numbers of 32 bits.
constexpr int64_t kMostJacobianStride = int64_t{1} << 30;

// Cuts fields into blocks: chunks so long that there are a few blocks for each multiprocessor of a large GPU.
template <class T>
void cut_into_blocks(JacobianField<T>& ddf) {
  constexpr int64_t kBlocks = 4096, kMostPlanes = 32;
  const int64_t depth = ddf.size[0], pieces = ceil_div<int64_t>(ddf.plane(), kJacobianThreads);
  const int64_t wanted = ceil_div(depth, ceil_div(kBlocks, ddf.batch * pieces));
  const int64_t chunks = ceil_div(depth, wanted < 1 ? 1 : wanted > kMostPlanes ? kMostPlanes : wanted);
  ddf.pieces = static_cast<unsigned>(pieces);
  ddf.chunks = static_cast<unsigned>(chunks);
  ddf.chunk = static_cast<int>(ceil_div(depth, chunks));
}

// The neighbours of a voxel along an axis; at a border, the voxel itself takes the place of one.
template <class R>
struct JacobianSides {
  int before, after;              // offsets
  R scale;                        // of the voxel's own derivative
  R before_weight, after_weight;  // what the pulls of the neighbours count
  bool exists;                    // or the axis has one voxel, and no derivative

  __device__ JacobianSides() {}
  __device__ JacobianSides(int64_t position, int64_t size, int stride, R whole) {
    const bool has_before = position > 0, has_after = position < size - 1;
    const R half = whole / 2;
    before = has_before ? -stride : 0;
    after = has_after ? stride : 0;
    scale = has_before && has_after ? half : whole;
    before_weight = !has_before ? -whole : position == 1 ? whole : half;
    after_weight = !has_after ? whole : position == size - 2 ? -whole : -half;
    exists = size > 1;
  }
};

// Where a thread is, and its matrix there. Derivatives and components are in the order of the axes that there are.
template <int kDims, class T>
class JacobianColumn {
 public:
  using R = Real<T>;
  int z, z_end;  // the chunk
  bool exists;

  __device__ explicit JacobianColumn(const JacobianField<T>& ddf) : ddf_(ddf) {
    const unsigned piece = blockIdx.x % ddf.pieces, chunk = blockIdx.x / ddf.pieces % ddf.chunks;
    image_ = blockIdx.x / ddf.pieces / ddf.chunks;
    const int64_t place = static_cast<int64_t>(piece) * kJacobianThreads + threadIdx.x;
    exists = place < ddf.plane();
    const auto depth = static_cast<int>(ddf.size[0]);
    z = static_cast<int>(chunk) * ddf.chunk;
    z_end = depth - z < ddf.chunk ? depth : z + ddf.chunk;
    const int64_t y = kDims > 1 ? place / ddf.size[2] : 0, x = kDims > 1 ? place % ddf.size[2] : place;
    in_map_ = (static_cast<int64_t>(image_) * ddf.size[0] + z) * ddf.plane() + place;
    for (int i = 0; i < kDims; ++i) here_[i] = ddf.field + in_field(i);
    sides_[kDims - 1] = {x, ddf.size[2], 1, ddf.scale[2]};
    if constexpr (kDims > 1) sides_[kDims - 2] = {y, ddf.size[1], static_cast<int>(ddf.size[2]), ddf.scale[1]};
    look_around();
  }

  // Where the voxel lies in a map, and in a component of a field.
  __device__ int64_t in_map() const { return in_map_; }
  __device__ int64_t in_field(int component) const {
    return in_map_ + (static_cast<int64_t>(image_) * (kDims - 1) + component) * ddf_.voxels();
  }

  // Goes on to the next plane.
  __device__ void advance() {
    ++z;
    in_map_ += ddf_.plane();
#pragma unroll
    for (int i = 0; i < kDims; ++i) here_[i] += ddf_.plane();
    look_around();
  }

  __device__ const JacobianSides<R>& sides(int axis) const { return sides_[axis]; }

  // A column of the matrix of a voxel at an offset along another axis.
  __device__ void find_column(int axis, int offset, R (&column)[kDims]) const {
    const JacobianSides<R>& sides = sides_[axis];
    const int before = offset + sides.before, after = offset + sides.after;
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      const R difference = sides.exists ? read(here_[i], after) - read(here_[i], before) : R(0);
      column[i] = sides.scale * difference + R(i == axis ? 1 : 0);
    }
  }

  // By the first row, as everywhere: infinite entries make the same infinities or NaN.
  __device__ R determinant() const {
    R m[kDims][kDims];  // by column
#pragma unroll
    for (int j = 0; j < kDims; ++j) find_column(j, 0, m[j]);
    if constexpr (kDims == 1) {
      return m[0][0];
    } else if constexpr (kDims == 2) {
      return m[0][0] * m[1][1] - m[1][0] * m[0][1];
    } else {
      return m[0][0] * (m[1][1] * m[2][2] - m[2][1] * m[1][2]) + m[1][0] * (m[2][1] * m[0][2] - m[0][1] * m[2][2]) +
             m[2][0] * (m[0][1] * m[1][2] - m[1][1] * m[0][2]);
    }
  }

  // The derivatives of the determinant by the column along an axis, of a voxel at an offset along that axis.
  __device__ void find_cofactors(int axis, int offset, R (&cofactors)[kDims]) const {
    R first[kDims], second[kDims];
    if (kDims > 1) find_column((axis + 1) % kDims, offset, first);
    if (kDims > 2) find_column((axis + 2) % kDims, offset, second);
    find_cofactors(axis, first, second, cofactors);
  }

 private:
  // The neighbours along z.
  __device__ void look_around() {
    if constexpr (kDims > 2) sides_[0] = {z, ddf_.size[0], static_cast<int>(ddf_.plane()), ddf_.scale[0]};
  }

  // From the other columns, in the order in which they follow on the axis.
  __device__ static void find_cofactors(int axis, const R (&first)[kDims], const R (&second)[kDims],
                                        R (&cofactors)[kDims]) {
    if constexpr (kDims == 1) {
      cofactors[0] = 1;
    } else if constexpr (kDims == 2) {
      cofactors[0] = axis == 0 ? first[1] : -first[1];
      cofactors[1] = axis == 0 ? -first[0] : first[0];
    } else {
      cofactors[0] = first[1] * second[2] - first[2] * second[1];
      cofactors[1] = first[2] * second[0] - first[0] * second[2];
      cofactors[2] = first[0] * second[1] - first[1] * second[0];
    }
  }

  const JacobianField<T>& ddf_;
  unsigned image_;
  int64_t in_map_;
  const T* here_[kDims];  // the voxel, in each component
  JacobianSides<R> sides_[kDims];
};

// Writes the determinants to values, (batch, z, y, x).
template <int kDims, class T>
__global__ void __launch_bounds__(kJacobianThreads, 8)
    write_determinants(const __grid_constant__ JacobianField<T> ddf, Real<T>* values) {
  JacobianColumn<kDims, T> column(ddf);
  if (!column.exists) return;
#pragma unroll 1
  for (; column.z < column.z_end; column.advance()) values[column.in_map()] = column.determinant();
}

// How far the determinants fall below the margin, to output: with kKeepMap a map, else a sum per block. NaN stays NaN.
template <int kDims, bool kKeepMap, class T>
__global__ void __launch_bounds__(kJacobianThreads, 8)
    sum_shortfalls(const __grid_constant__ JacobianField<T> ddf, Real<T> margin, Real<T>* output) {
  using R = Real<T>;
  R total = 0;
  JacobianColumn<kDims, T> column(ddf);
  if (column.exists) {
#pragma unroll 1
    for (; column.z < column.z_end; column.advance()) {
      const R found = column.determinant(), value = found >= margin ? R(0) : margin - found;
      if (kKeepMap) output[column.in_map()] = value;
      total += value;
    }
  }
  if (kKeepMap) return;
  total = block_sum(total);
  if (threadIdx.x == 0) output[blockIdx.x] = total;
}

// Writes the derivative of the loss by each determinant to slopes. grad: the incoming gradient, with kHasMap a map;
// factor: what multiplies it.
template <int kDims, bool kHasMap, class T>
__global__ void __launch_bounds__(kJacobianThreads, 8)
    write_slopes(const __grid_constant__ JacobianField<T> ddf, Real<T> margin, const Real<T>* grad, Real<T> factor,
                 Real<T>* slopes) {
  using R = Real<T>;
  JacobianColumn<kDims, T> column(ddf);
  if (!column.exists) return;
#pragma unroll 1
  for (; column.z < column.z_end; column.advance()) {
    const bool is_idle = column.determinant() >= margin;
    slopes[column.in_map()] = is_idle ? R(0) : -(kHasMap ? grad[column.in_map()] : factor * *grad);
  }
}

// Writes the gradient to the field, from that to the determinants. kSparse: most slopes are 0.
template <int kDims, bool kSparse, class T>
__global__ void __launch_bounds__(kJacobianThreads, 8)
    write_jacobian_gradient(const __grid_constant__ JacobianField<T> ddf, const Real<T>* slopes, T* gradient) {
  using R = Real<T>;
  JacobianColumn<kDims, T> column(ddf);
  if (!column.exists) return;
#pragma unroll 1
  for (; column.z < column.z_end; column.advance()) {
    const R* const around = slopes + column.in_map();
    R total[kDims] = {};
#pragma unroll
    for (int axis = 0; axis < kDims; ++axis) {
      const JacobianSides<R>& sides = column.sides(axis);
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int offset = side == 0 ? sides.before : sides.after;
        const R slope = sides.exists ? around[offset] : R(0);
        if (kSparse ? slope == 0 : !sides.exists) continue;
        const R pull = slope * (side == 0 ? sides.before_weight : sides.after_weight);
        R cofactors[kDims];
        column.find_cofactors(axis, offset, cofactors);
#pragma unroll
        for (int i = 0; i < kDims; ++i) total[i] += pull * cofactors[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kDims; ++i) gradient[column.in_field(i)] = narrow<T>(total[i]);
  }
}

}  // namespace cuda
}  // namespace usreg
