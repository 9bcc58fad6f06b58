#!/usr/bin/env bash
# Runs the GPU stages on a machine without a network, from what `python -m tools.gpu pack` packed beside this file:
#   bash .gpu/run.sh smoke tests --limit 600 --out results
# All arguments go to `python -m tools.gpu`. PYTHON names the interpreter that has torch (python3). What is unpacked
# goes to USREG_GPU_UNPACKED (a folder in /tmp), and serves later calls.
set -euo pipefail
kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$kit/.."
python=${PYTHON:-python3}
unpacked=${USREG_GPU_UNPACKED:-/tmp/usreg-gpu-$(id -u)}
if ! cmp --silent "$kit/contents.json" "$unpacked/contents.json"; then  # another pack, or the first one
  rm -rf "$unpacked"
  mkdir -p "$unpacked"
  cp "$kit/contents.json" "$unpacked"
fi

if compgen -G "$kit/wheels/*.whl" > /dev/null; then
  if [ ! -e "$unpacked/site.done" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target "$unpacked/site" "$kit"/wheels/*.whl
    touch "$unpacked/site.done"
  fi
  PYTHONPATH=$unpacked/site${PYTHONPATH:+:$PYTHONPATH}
fi

# The carried Triton comes first on the path. Its assembler stayed behind: that of the machine's own Triton serves.
if [ -e "$kit/triton.tar.xz" ]; then
  if [ ! -e "$unpacked/triton.done" ]; then
    assembler=$("$python" -c "
import importlib.util, pathlib
print(pathlib.Path(importlib.util.find_spec('triton').origin).parent / 'backends/nvidia/bin')")
    mkdir -p "$unpacked/triton"
    "$python" -c "
import sys, tarfile
tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='fully_trusted')" "$kit/triton.tar.xz" "$unpacked/triton"
    mkdir -p "$unpacked/triton/triton/backends/nvidia/bin"
    ln -sf "$assembler"/* "$unpacked/triton/triton/backends/nvidia/bin/"
    touch "$unpacked/triton.done"
  fi
  if PYTHONPATH=$unpacked/triton:${PYTHONPATH:-} "$python" -c "import triton, torch"; then
    PYTHONPATH=$unpacked/triton:${PYTHONPATH:-}
  else
    echo "The carried Triton cannot be imported here: the machine's own one runs." >&2
  fi
fi
export PYTHONPATH=${PYTHONPATH:-} TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$unpacked/triton-cache}

for packed in "$kit"/libusreg_*.so.xz; do
  library=usreg_kernels/$(basename "$packed" .xz)
  if [ "$packed" -nt "$library" ]; then
    "$python" -c "
import lzma, sys
open(sys.argv[2], 'wb').write(lzma.open(sys.argv[1]).read())" "$packed" "$library"
  fi
done

exec "$python" -m tools.gpu "$@"
