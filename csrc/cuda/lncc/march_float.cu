// The march of local normalised cross-correlation for images of float.

#include "cuda/lncc/march_launch.cuh"

namespace usreg {
namespace cuda {

template struct MarchLaunches<float>;

}  // namespace cuda
}  // namespace usreg
