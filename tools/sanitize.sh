#!/usr/bin/env bash
# Runs the kernel tests on a CPU library that is compiled with a sanitizer: `tools/sanitize.sh address` (addresses and
# undefined behaviour; the CUDA kernels have a test of their own for that) or `tools/sanitize.sh thread`. More arguments
# go to pytest. Needs the set-up of `make setup`, and g++ with its sanitizers' libraries; leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  address) flags=-fsanitize=address,undefined ; runtimes="libasan.so libubsan.so" ;;
  thread) flags=-fsanitize=thread ; runtimes=libtsan.so ;;
  *) echo "usage: tools/sanitize.sh address|thread [pytest arguments]" >&2 ; exit 2 ;;
esac
shift

python=$PWD/.venv/bin/python
target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT
# -O1 comes behind the flags of setup.py, and counts: the same accesses are checked, and it compiles much faster.
CXX="g++ $flags -fno-sanitize-recover=all -fno-omit-frame-pointer -g1" CXXFLAGS=-O1 USREG_BUILD_CPU=1 USREG_BUILD_CUDA=0 \
  "$python" -m pip install --quiet --no-build-isolation --no-deps --target "$target" .

preload=$(for runtime in $runtimes; do g++ -print-file-name="$runtime"; done | tr '\n' ' ')
# Python and torch keep what they allocate; torch.compile would run g++ under the preloaded runtime.
export ASAN_OPTIONS=detect_leaks=0:symbolize=1 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:report_bugs=1:ignore_noninstrumented_modules=1
export PYTHONPATH=$target USREG_RANDOM_CASES=${USREG_RANDOM_CASES:-400}
LD_PRELOAD=$preload "$python" -P -c "
import sys, usreg_kernels.library as library
assert str(library.path('cpu')).startswith(sys.argv[1]) and library.reason('cpu') is None, library.reason('cpu')
" "$target"
LD_PRELOAD=$preload "$python" -P -m pytest -q -s -p no:cacheprovider tests/kernels -k "cpu and not compile and not opcheck" "$@"
