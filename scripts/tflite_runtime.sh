#!/usr/bin/env bash
# The contract of the TFLite backend on tflite_runtime, the engine of a 32-bit Pi, in an environment of its own: it needs
# Python 3.11 or older and numpy < 2. Where there is no wheel of it, says so and succeeds.
#   scripts/tflite_runtime.sh                     # this source tree
#   scripts/tflite_runtime.sh dist/tinymlops-*.whl
set -euo pipefail
wheel="${1:+$(realpath "$1")}"
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] > (3, 11))'; then
  echo "not run: tflite-runtime has no wheel for $("$PYTHON" --version), the last was for Python 3.11"
  exit 0
fi
environment="$PWD/build/tflite-runtime"
rm -rf "$environment"
"$PYTHON" -m venv "$environment"
pip=("$environment/bin/python" -m pip --disable-pip-version-check -q)
"${pip[@]}" install "tflite-runtime==2.14.0" "numpy<2" "setuptools>=77" pytest hypothesis msgpack psutil
# Without dependencies: what the backend needs is above, and nothing else may be needed.
if [ -n "$wheel" ]; then
  "${pip[@]}" install --no-deps "$wheel"
else
  "${pip[@]}" install --no-deps -e .
fi
report="$environment/report.xml"
TINYLCM_TFLITE=tflite_runtime "$environment/bin/pytest" -q -p no:cacheprovider -k tflite -m "not source_tree" \
  --junit-xml="$report" tests/runtime/test_backends.py tests/runtime/test_tflite.py
# What was not run proves nothing.
"$environment/bin/python" - "$report" <<'PY'
import sys
from xml.etree import ElementTree

import tflite_runtime

suite = ElementTree.parse(sys.argv[1]).getroot().find("testsuite")
tests, skipped = int(suite.get("tests")), int(suite.get("skipped"))
if skipped or tests < 100:
    sys.exit(f"{tests} tests, {skipped} of them skipped: expected more than 100, none of them skipped")
print(f"tflite_runtime {tflite_runtime.__version__}: {tests} tests passed, none skipped")
PY
