#!/usr/bin/env bash
# The committed vectors on aarch64 under qemu-user: the extensions cross-compiled with the flags of setup.py, run by
# Debian's arm64 Python. Decisions must be those of x86-64, and states the same to the last bit.
# Needs Debian's qemu-user, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross; everything else goes to build/aarch64.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in qemu-aarch64 aarch64-linux-gnu-gcc apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || {
    echo "needs $tool: apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross" >&2
    exit 1
  }
done
work="$PWD/build/aarch64"
root="$work/root"
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,debs} "$root"
# An apt of its own: nothing of the system's is read or changed but the sources of packages.
apt=(-o "Dir::State=$work/state" -o "Dir::Cache=$work/cache" -o APT::Architecture=arm64 -o APT::Architectures=arm64
  -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
if [ ! -e "$root/.unpacked" ]; then
  apt-get "${apt[@]}" update -q >/dev/null
  version="$(apt-cache "${apt[@]}" depends python3-minimal | sed -n 's/.*Depends: python\(3\.[0-9]*\)-minimal.*/\1/p')"
  (cd "$work/debs" && apt-get "${apt[@]}" download -q "libpython$version-minimal" "libpython$version-stdlib" \
    "python$version-minimal" "libpython$version-dev" libc6 libexpat1 zlib1g python3-numpy python3-msgpack libblas3 \
    liblapack3 libgfortran5 libgcc-s1 libstdc++6 libffi8 libbz2-1.0 liblzma5 libcrypt1 libuuid1 >/dev/null)
  for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$root"; done
  echo "$version" >"$root/.unpacked"
fi
version="$(cat "$root/.unpacked")"

# The compiled part alone, with the modules of ours that it and the steps import.
target="$work/site/tinylcm"
rm -rf "$work/site"
mkdir -p "$target/_ext"
touch "$target/__init__.py" "$target/_ext/__init__.py"
cp runtime/{errors,types,checks,preprocess}.py "$target"/
cp -r runtime/stats runtime/drift "$target"/
flags=(-O3 -g0 -ffp-contract=off -fno-tree-slp-vectorize -fPIC -shared)
for source in runtime/_ext/*.pyx; do
  name="$(basename "$source" .pyx)"
  aarch64-linux-gnu-gcc "${flags[@]}" -I "$root/usr/include/python$version" \
    -I "$root/usr/include" -o "$target/_ext/$name.so" "build/cython/runtime/_ext/$name.c" -lm
done
export PYTHONPATH="$work/site:$root/usr/lib/python3/dist-packages" PYTHONHOME="$root/usr" PYTHONDONTWRITEBYTECODE=1
libraries="$root/usr/lib/aarch64-linux-gnu:$root/lib/aarch64-linux-gnu:$root/usr/lib/aarch64-linux-gnu/blas"
libraries="$libraries:$root/usr/lib/aarch64-linux-gnu/lapack"
qemu-aarch64 -L "$root" -E LD_LIBRARY_PATH="$libraries" "$root/usr/bin/python$version" \
  scripts/vectors.py >"$work/aarch64.json"
env -u PYTHONPATH -u PYTHONHOME .venv/bin/python scripts/vectors.py >"$work/here.json"
env -u PYTHONPATH -u PYTHONHOME .venv/bin/python - "$work/here.json" "$work/aarch64.json" <<'PY'
import json, sys
here, there = (json.load(open(path)) for path in sys.argv[1:])
assert there["machine"] == "aarch64", there["machine"]
wrong = [name for name in here["states"] if here["states"][name] != there["states"].get(name)]
assert not here["failed"] and not there["failed"], (here["failed"], there["failed"])
assert here["decisions"] == there["decisions"], "decisions differ on aarch64"
assert here["states"].keys() == there["states"].keys() and not wrong, f"states differ on aarch64: {wrong}"
print(f"aarch64 under qemu: {there['cases']} river vectors decided alike, {len(here['states'])} states bit for bit the same, kNN and log-mel decide alike")
PY
