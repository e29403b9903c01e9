#!/usr/bin/env bash
# A real MLflow server in an environment of its own: the full distribution takes 900 MB, and nothing of ours imports it.
# The first call installs it into build/mlflow-env (a minute or two); later ones find it there.
#   bash scripts/mlflow_server.sh install       only that; what `make test` and .ci/run call
#   bash scripts/mlflow_server.sh PORT FOLDER   serve on 127.0.0.1:PORT, its database and artifacts in FOLDER
# MLFLOW_ARTIFACTS=s3://bucket/prefix, with MLFLOW_S3_ENDPOINT_URL and AWS_*, keeps the artifacts in a bucket instead.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
env=$root/build/mlflow-env
# 3.18.0 cannot be installed: it wants an mlflow-skinny that is not in the index.
wanted="mlflow==3.17.2 boto3>=1.35"

if [ "$(cat "$env/.ready" 2>/dev/null)" != "$wanted" ]; then
  echo "installing MLflow into build/mlflow-env (900 MB) ..." >&2
  rm -rf "$env"
  "${PYTHON:-python3}" -m venv "$env"
  # shellcheck disable=SC2086 # two requirements
  "$env/bin/python" -m pip --disable-pip-version-check -q install $wanted
  echo "$wanted" > "$env/.ready"
fi
[ "${1:-}" != install ] || exit 0

port=${1:?a port, or install}
folder=${2:?a folder for its database}
mkdir -p "$folder"
# Without the job runner and with one worker it takes a quarter of the memory: 490 MB instead of 1.8 GB.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
export PATH=$env/bin:$PATH  # it starts uvicorn by name
exec "$env/bin/mlflow" server --host 127.0.0.1 --port "$port" --workers 1 \
  --backend-store-uri "sqlite:///$folder/mlflow.db" \
  --artifacts-destination "${MLFLOW_ARTIFACTS:-$folder/artifacts}"
