#!/usr/bin/env bash
# Install the wheel in an empty environment and use it away from the checkout; without one, build it first.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ $# -gt 0 ]; then
    cp "$1" "$work"
else
    .venv-dev/bin/python -m build --wheel --no-isolation --outdir "$work" . >/dev/null
fi
requirements=$PWD/requirements
cd "$work"
size=$(stat -c %s equipoise-*.whl)
test "$size" -lt 15000000 || { echo "the wheel is $size bytes; only the small model may be large"; exit 1; }
python3 -m venv venv
PATH=$work/venv/bin:$PATH

pip install --quiet --disable-pip-version-check -r "$requirements/run.txt"
pip install --quiet --disable-pip-version-check --no-deps equipoise-*.whl
equipoise --version
equipoise explain | grep -q first-plan
equipoise explain forecast | head -1
trace=$(python -c 'import equipoise as eq; print(eq.sample_trace_path())')
equipoise report "$trace" --ranks 8 >report.txt
equipoise plan "$trace" --ranks 8 --redundant 8 --for trtllm -o map.yaml >plan.txt
equipoise validate map.yaml --for trtllm --ranks 8 --experts 32
equipoise lab --solution -o lab
(cd lab && python -m unittest)

pip install --quiet --disable-pip-version-check -r "$requirements/serve.txt"   # what the extra [runtime] needs, pinned
equipoise demo --processes 2 --seconds 5
echo "wheel smoke test passed"
