// How the losses of a displacement field's differences go through it: a thread owns one position (y, x) of a component
// and marches along z through a chunk of planes. It keeps what planes share, and knows from the start which neighbours
// along y and x there are.
//
// A field of two spatial dims is a volume of one row per plane, so that it is marched through as well; one of a single
// dim is one plane of one row.
#pragma once

#include "common/field_terms.h"
#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"

namespace usreg {
namespace cuda {

constexpr int kFieldThreads = 128;

// A loss as the kernels evaluate it, on a field of elements T.
template <class T>
struct FieldLoss {
  using R = Real<T>;
  const T* field;  // (components, z, y, x)
  int64_t components, channels;
  int64_t size[3];
  bool has_z, has_y;                 // or the axis has one voxel and does not count
  R weights[3 * kFieldDifferences];  // (channels, differences of a volume): what multiplies each penalty
  // A block takes a piece of each plane of a chunk.
  int chunk;  // planes
  unsigned pieces, chunks;

  int64_t blocks() const { return components * chunks * pieces; }
  __host__ __device__ int64_t plane() const { return size[1] * size[2]; }

  // Voxels per plane of a loss map that leaves out a margin at the borders of the axes that there are.
  __host__ __device__ int64_t map_plane(int margin) const {
    return (size[1] - (has_y ? 2 * margin : 0)) * (size[2] - 2 * margin);
  }

  // Along z; of a field without the axis, the one plane has no borders.
  __host__ __device__ int margin_along_z(int margin) const { return has_z ? margin : 0; }
};

// Of a plane of several rows: offsets in it are of 32 bits.
constexpr int64_t kMostFieldPlane = int64_t{1} << 30;

// The most planes of a chunk: more would hardly save anything, and a thread's sum would round more.
constexpr int kMostFieldPlanes = 32;

// Cuts a field into blocks: chunks so long that there are a few blocks for each multiprocessor of a large GPU. Each
// block marches through up to four planes of its neighbours.
template <class T>
void cut_into_blocks(FieldLoss<T>& loss) {
  constexpr int64_t kBlocks = 2048, kLeastPlanes = 8;
  const int64_t depth = loss.size[0], pieces = ceil_div<int64_t>(loss.plane(), kFieldThreads);
  const int64_t wanted = ceil_div(depth, ceil_div(kBlocks, loss.components * pieces));
  const int64_t planes = wanted < kLeastPlanes ? kLeastPlanes : wanted > kMostFieldPlanes ? kMostFieldPlanes : wanted;
  const int64_t chunks = ceil_div(depth, planes);
  loss.pieces = static_cast<unsigned>(pieces);
  loss.chunks = static_cast<unsigned>(chunks);
  loss.chunk = static_cast<int>(ceil_div(depth, chunks));
}

// Where a thread is.
struct FieldColumn {
  unsigned component;
  int64_t y, x;
  int64_t place;     // in a plane
  int64_t z, z_end;  // the chunk
  bool exists;

  template <class T>
  __device__ explicit FieldColumn(const FieldLoss<T>& loss) {
    const unsigned piece = blockIdx.x % loss.pieces, chunk = blockIdx.x / loss.pieces % loss.chunks;
    component = blockIdx.x / loss.pieces / loss.chunks;
    place = static_cast<int64_t>(piece) * kFieldThreads + threadIdx.x;
    exists = place < loss.plane();
    const auto index = static_cast<unsigned>(place), width = static_cast<unsigned>(loss.size[2]);
    y = loss.has_y ? index / width : 0;
    x = loss.has_y ? index % width : place;
    z = static_cast<int64_t>(chunk) * loss.chunk;
    z_end = z + loss.chunk < loss.size[0] ? z + loss.chunk : loss.size[0];
  }

  // Where plane z of the column lies in the field.
  template <class T>
  __device__ int64_t place_in_field(const FieldLoss<T>& loss, int64_t plane) const {
    return (static_cast<int64_t>(component) * loss.size[0] + plane) * loss.plane() + place;
  }

  template <class T>
  __device__ const Real<T>* weights(const FieldLoss<T>& loss, int per_channel) const {
    return loss.weights + component % static_cast<unsigned>(loss.channels) * per_channel;
  }

  // The same holds in a loss map, which leaves out a margin at the borders of the axes that there are.
  template <class T>
  __device__ int64_t place_in_map(const FieldLoss<T>& loss, int64_t plane, int margin) const {
    const int margin_y = loss.has_y ? margin : 0, margin_z = loss.margin_along_z(margin);
    const int64_t in_map = static_cast<int64_t>(component) * (loss.size[0] - 2 * margin_z) + plane - margin_z;
    const int64_t row = in_map * (loss.size[1] - 2 * margin_y) + y - margin_y;
    return row * (loss.size[2] - 2 * margin) + x - margin;
  }
};

// Whether something exists along an axis, as bits: a thread has few predicates.
class Mask {
 public:
  __device__ explicit Mask(bool exists) : bits_(exists ? ~0u : 0u) {}

  __device__ bool operator&&(const Mask& other) const { return (bits_ & other.bits_) != 0; }

  // The value or, unless both exist, 0: also in place of infinity and NaN.
  __device__ friend float both(const Mask& first, const Mask& second, float value) {
#if defined(__CUDA_ARCH__)
    float result;  // in one instruction: the compiler would keep the masks of all pairs
    asm("lop3.b32 %0, %1, %2, %3, 0x80;" : "=f"(result) : "f"(value), "r"(first.bits_), "r"(second.bits_));
    return result;
#else
    return first && second ? value : 0;
#endif
  }
  __device__ friend double both(const Mask& first, const Mask& second, double value) {
    return first && second ? value : 0;
  }

 private:
  unsigned bits_;
};

// The neighbours of a column along y or x.
struct Neighbours {
  int before, after;  // how many there are in the field, at most two
  bool has_axis;

  __device__ Neighbours(int64_t position, int64_t size, bool axis_exists)
      : before(at_most_two(position)), after(at_most_two(size - 1 - position)), has_axis(axis_exists) {}

  // Whether the column is in the interior, which a margin of 1 leaves, and whether those beside it are.
  __device__ bool inner() const { return !has_axis || (before >= 1 && after >= 1); }
  __device__ bool inner_before() const { return before == 2; }
  __device__ bool inner_after() const { return after == 2; }

 private:
  __device__ static int at_most_two(int64_t count) { return count < 2 ? static_cast<int>(count) : 2; }
};

template <Penalty kPenalty, class R>
__device__ R penalty(R difference) {
  if (kPenalty == Penalty::kSquare) return difference * difference;
  return difference < 0 ? -difference : difference;
}

// The derivative of the penalty; for the square, half of it. NaN stays NaN.
template <Penalty kPenalty, class R>
__device__ R slope(R difference) {
  if (kPenalty == Penalty::kSquare) return difference;
  return difference > 0 ? R(1) : difference < 0 ? R(-1) : R(0) * difference;
}

// The incoming gradient of a loss map around a column; without a map, the loss is a scalar.
template <bool kHasMap, class R>
class GradMap {
 public:
  template <class T>
  __device__ GradMap(const FieldLoss<T>& loss, const FieldColumn& column, const R* grad, int64_t first, int margin)
      : here_(grad + column.place_in_map(loss, first, margin)),
        plane_(loss.map_plane(margin)),
        row_(static_cast<int>(loss.size[2]) - 2 * margin) {}

  // Of a voxel at an offset from the column, in the plane that the march has come to.
  __device__ R at(int y, int x, bool in_map) const { return in_map ? here_[static_cast<int64_t>(y) * row_ + x] : R(0); }

  __device__ void advance() { here_ += plane_; }

 private:
  const R* here_;  // it is read only where there is a map
  int64_t plane_;
  int row_;
};
template <class R>
class GradMap<false, R> {
 public:
  template <class T>
  __device__ GradMap(const FieldLoss<T>&, const FieldColumn&, const R*, int64_t, int) {}
  __device__ R at(int, int, bool) const { return 1; }
  __device__ void advance() {}
};

}  // namespace cuda
}  // namespace usreg
