// Which instruction set the CPU kernels use, chosen once per process.
#pragma once

#include <cstdint>

// One x86-64 binary holds every kernel three times (cpu/support/for_each_isa.inc); elsewhere there is only the
// baseline.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define USREG_SEVERAL_ISAS 1
#else
#define USREG_SEVERAL_ISAS 0
#endif

// Bytes of a vector, per instruction set of the kernels (cpu/support/for_each_isa.inc).
#define USREG_VECTOR_BYTES_base 16
#define USREG_VECTOR_BYTES_avx2 32
#define USREG_VECTOR_BYTES_avx512 64
#define USREG_JOIN_NAMES(first, second) first##second
#define USREG_VECTOR_BYTES_OF(isa) USREG_JOIN_NAMES(USREG_VECTOR_BYTES_, isa)

namespace usreg {

// In rising order; each includes those before it.
enum class Capability { kBase, kAvx2, kAvx512 };

// The best that this machine has and the environment variable USREG_CPU_CAPABILITY (base | avx2 | avx512) allows.
// Throws if the variable holds anything else. Call it outside parallel_for, which loses the text of an error.
Capability cpu_capability();

// The same for kernels that mostly load and arrange single numbers. Processors that work on vectors of 64 bytes in
// halves gain nothing from them there and take longer to arrange them: AVX2 is chosen, unless the variable asks for
// AVX-512.
Capability capability_for_single_loads();

// Bytes of a vector of the kernels that this process uses.
inline int64_t vector_bytes() {
  switch (cpu_capability()) {
    case Capability::kAvx512:
      return USREG_VECTOR_BYTES_avx512;
    case Capability::kAvx2:
      return USREG_VECTOR_BYTES_avx2;
    default:
      return USREG_VECTOR_BYTES_base;
  }
}

template <class Kernel>
Kernel* select_for(Capability capability, Kernel* base, Kernel* avx2, Kernel* avx512) {
  switch (capability) {
    case Capability::kAvx512:
      return avx512;
    case Capability::kAvx2:
      return avx2;
    default:
      return base;
  }
}

}  // namespace usreg

// Pointer to the variant of a kernel, named without its instruction set, for a Capability. A macro, since no template
// can put a namespace before a name; so are USREG_ISA and USREG_KERNEL_BODY, which name namespaces and files.
#if USREG_SEVERAL_ISAS
#define USREG_SELECT_FOR(capability, ...)                                                   \
  ::usreg::select_for(capability, &::usreg::base::__VA_ARGS__, &::usreg::avx2::__VA_ARGS__, \
                      &::usreg::avx512::__VA_ARGS__)
#else
#define USREG_SELECT_FOR(capability, ...) \
  ::usreg::select_for(capability, &::usreg::base::__VA_ARGS__, &::usreg::base::__VA_ARGS__, &::usreg::base::__VA_ARGS__)
#endif

// The variant that this process uses.
#define USREG_SELECT(...) USREG_SELECT_FOR(::usreg::cpu_capability(), __VA_ARGS__)
