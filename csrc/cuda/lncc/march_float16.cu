// The march of local normalised cross-correlation for images of float16.

#include "cuda/lncc/march_launch.cuh"

namespace usreg {
namespace cuda {

template struct MarchLaunches<Float16>;

}  // namespace cuda
}  // namespace usreg
