// The march of local normalised cross-correlation for images of bfloat16.

#include "cuda/lncc/march_launch.cuh"

namespace usreg {
namespace cuda {

template struct MarchLaunches<BFloat16>;

}  // namespace cuda
}  // namespace usreg
