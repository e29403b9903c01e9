#!/usr/bin/env bash
# The tests of the compiled code against extensions built with AddressSanitizer and UndefinedBehaviorSanitizer, in an
# environment of their own. The first bad access or undefined operation ends the run with a report and a failure.
# Facts: Python's own allocator hides overruns (PYTHONMALLOC=malloc), and leaks of the interpreter are not ours.
set -euo pipefail
cd "$(dirname "$0")/.."
ENVIRONMENT=build/sanitize-env
SOURCES=build/sanitize
"${PYTHON:-python3}" -m venv "$ENVIRONMENT"
# A copy, so that the working tree keeps its own extensions.
rm -rf "$SOURCES"
mkdir -p "$SOURCES"
cp -r runtime server firmware_bridge tests setup.py pyproject.toml README.md LICENSE "$SOURCES"/
mkdir -p "$SOURCES/docs" "$SOURCES/examples"
find "$SOURCES" -name '*.so' -delete
"$ENVIRONMENT/bin/python" -m pip --disable-pip-version-check -q install "setuptools>=77" "cython>=3.1,<3.4"
(cd "$SOURCES" && TINYMLOPS_SANITIZE=1 "../../$ENVIRONMENT/bin/python" -m pip --disable-pip-version-check -q \
  install --no-build-isolation -e ".[onnx,image]" pytest pytest-benchmark "hypothesis>=6.100" "river==0.26.1" scipy onnx)
preload=""
for library in libasan libubsan; do
  path="$(gcc -print-file-name=$library.so)"
  # gcc answers with the bare name when it has none.
  [ "$path" != "$library.so" ] || { echo "needs $library: apt-get install gcc libc6-dev" >&2; exit 1; }
  preload="$preload $path"
done
# libstdc++ must be there before ASan looks for __cxa_throw, or the first C++ exception of a dependency ends the run.
preload="$preload $(gcc -print-file-name=libstdc++.so.6)"
export PYTHONMALLOC=malloc
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
cd "$SOURCES"
# That the sanitizers are really in: the extension must ask for ASan's symbols.
# (grep -c reads to the end: -q would end nm by SIGPIPE, and pipefail take that for a failure.)
nm -D runtime/_ext/stats*.so | grep -c __asan >/dev/null || { echo "the extensions were not built with ASan" >&2; exit 1; }
LD_PRELOAD="$preload" "../../$ENVIRONMENT/bin/python" -m pytest -q -p no:cacheprovider \
  tests/runtime/test_stats.py tests/runtime/test_drift.py tests/runtime/test_ring.py tests/runtime/test_monitors.py \
  tests/runtime/test_segments.py tests/runtime/test_window.py tests/runtime/test_knn.py tests/runtime/test_decider.py \
  tests/runtime/test_preprocess.py tests/runtime/test_prediction.py tests/runtime/test_pipeline.py \
  tests/runtime/test_loading.py tests/runtime/test_chain.py tests/runtime/test_jsonable.py tests/runtime/test_wire.py \
  tests/firmware_bridge/test_frames.py tests/firmware_bridge/test_protocol.py "$@"
