#!/bin/sh
# The main job on the recording that ships with the package: report, plan for several deployments,
# score on held-out steps, write and validate a map for every engine. Results go to demo-output/.
set -eu
out=demo-output
mkdir -p "$out"
trace=$(python -c 'import equipoise as eq; print(eq.sample_trace_path())')

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

echo "== How unbalanced is it, and how much of that is chance?"
run equipoise report "$trace" --ranks 8 --html "$out/report.html"

echo
echo "== Which copies, and where? Scored on steps the planner has not seen."
for ranks in 4 8 16; do
    run equipoise plan "$trace" --ranks "$ranks" --redundant "$ranks"
done

echo
echo "== The file each engine loads, proven valid."
for target in equipoise:map.json trtllm:moe_load_balancer.yaml sglang:expert_location.json \
    vllm-41141:initial_mapping.jsonl vllm-49572:expert_map_list.json ascend:expert_map.json; do
    format=${target%%:*}
    file=$out/$format-${target#*:}
    run equipoise plan "$trace" --ranks 8 --redundant 8 --for "$format" --output "$file"
    run equipoise validate "$file" --for "$format" --ranks 8 --experts 32
done

echo
echo "== What would move from the map of one engine to that of another? Nothing: it is the same plan."
run equipoise diff "$out/trtllm-moe_load_balancer.yaml" "$out/ascend-expert_map.json" --ranks 8 --experts 32
echo
echo "Maps and an HTML report are in $out/."
