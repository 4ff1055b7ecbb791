#!/usr/bin/env bash
# Build the wheel, install it alone in a fresh environment, and use it away from the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

.venv-dev/bin/python -m build --wheel --no-isolation --outdir "$work" . >/dev/null
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -r requirements/run.txt
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "$work"/equipoise-*.whl

cd "$work"
size=$(stat -c %s equipoise-*.whl)
test "$size" -lt 4000000 || { echo "the wheel is $size bytes; models must stay out of it"; exit 1; }
venv/bin/equipoise --version
venv/bin/equipoise explain | grep -q first-plan
venv/bin/equipoise explain forecast | head -1
trace=$(venv/bin/python -c 'import equipoise as eq; print(eq.sample_trace_path())')
venv/bin/equipoise report "$trace" --ranks 8 >report.txt
venv/bin/equipoise plan "$trace" --ranks 8 --redundant 8 --for trtllm -o map.yaml >plan.txt
venv/bin/equipoise validate map.yaml --for trtllm --ranks 8 --experts 32
venv/bin/equipoise lab --solution -o lab
(cd lab && ../venv/bin/python -m unittest)
echo "wheel smoke test passed"
