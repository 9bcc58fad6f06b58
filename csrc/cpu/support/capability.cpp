#include "cpu/support/capability.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <string>

#if USREG_SEVERAL_ISAS
#include <cpuid.h>
#endif

namespace usreg {
namespace {

// Names by Capability: values of USREG_CPU_CAPABILITY, and what is reported to Python.
constexpr const char* kNames[] = {"base", "avx2", "avx512"};

#if USREG_SEVERAL_ISAS
// Not by __builtin_cpu_supports, whose names of features differ between compilers: Clang 16 has none for this one.
bool has_f16c() {
  unsigned int eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}
#endif

Capability of_machine() {
#if USREG_SEVERAL_ISAS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Capability::kAvx512 : avx2 ? Capability::kAvx2 : Capability::kBase;
#else
  return Capability::kBase;
#endif
}

// The value of USREG_CPU_CAPABILITY; null where it is not set, or empty.
const char* asked_for() {
  const char* value = std::getenv("USREG_CPU_CAPABILITY");
  return value == nullptr || *value == '\0' ? nullptr : value;
}

Capability allowed() {
  const char* value = asked_for();
  if (value == nullptr) return Capability::kAvx512;
  for (Capability capability : {Capability::kBase, Capability::kAvx2, Capability::kAvx512}) {
    if (value == std::string(kNames[static_cast<int>(capability)])) return capability;
  }
  STD_TORCH_CHECK(false, "USREG_CPU_CAPABILITY=", value, " is not valid: use base, avx2 or avx512, or unset it");
  return Capability::kBase;
}

// Of the processors that do, this family has AVX-512 (Zen 4).
bool halves_wide_vectors() {
#if USREG_SEVERAL_ISAS
  __builtin_cpu_init();
  return __builtin_cpu_is("amdfam19h");
#else
  return false;
#endif
}

}  // namespace

Capability cpu_capability() {
  static const Capability chosen = std::min(of_machine(), allowed());
  return chosen;
}

Capability capability_for_single_loads() {
  static const bool prefers_avx2 = asked_for() == nullptr && halves_wide_vectors();
  return prefers_avx2 ? std::min(cpu_capability(), Capability::kAvx2) : cpu_capability();
}

}  // namespace usreg

// For Python's report; null where USREG_CPU_CAPABILITY is not valid (the ops raise an error that says so).
extern "C" __attribute__((visibility("default"))) const char* usreg_cpu_capability() {
  try {
    return usreg::kNames[static_cast<int>(usreg::cpu_capability())];
  } catch (const std::exception&) {
    return nullptr;
  }
}
