#!/bin/sh
# The main job on the recording that ships with the package: report, plan for several deployments,
# score on held-out steps, write and validate a map for every engine. Results go to demo-output/.
# Then the same live: a small model served by four processes, balanced while its load shifts.
set -eu
out=demo-output
mkdir -p "$out"
trace=$(python -c 'import equipoise as eq; print(eq.sample_trace_path())')
# The recorded model: 5 layers, all MoE, 32 experts.
model="--experts 32 --layers 0-4"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

printf '== How unbalanced is it, and how much of that is chance?\n'
run equipoise report "$trace" --ranks 8 --html "$out/report.html"

printf '\n== Which copies, and where? Scored on steps the planner has not seen.\n'
for ranks in 4 8 16; do
    run equipoise plan "$trace" --ranks "$ranks" --redundant "$ranks" --proposals 400000 \
        --for equipoise --output "$out/plan-$ranks.json"
done

printf '\n== The same copies packed by mean loads, as engines do today, for comparison.\n'
run equipoise plan "$trace" --ranks 8 --redundant 8 --planner greedy \
    --for equipoise --output "$out/greedy-8.json"

printf '\n== That map made better while it serves: 20 of its 200 slots may change.\n'
run equipoise repair "$out/greedy-8.json" "$trace" --max-moves 20 --proposals 100000 \
    --output "$out/repaired-8.json"

printf '\n== A map for the loss of each rank, made beforehand; the others keep what they have.\n'
run equipoise failover "$out/plan-8.json" "$trace" --lost rank --for equipoise \
    --output "$out/failover"

printf '\n== The file each engine loads, proven valid, from the plan for 8 ranks.\n'
for target in trtllm:moe_load_balancer.yaml sglang:expert_location.json \
    vllm-41141:initial_mapping.jsonl vllm-49572:expert_map_list.json ascend:expert_map.json; do
    format=${target%%:*}
    file=$out/${target#*:}
    extra=
    if [ "$format" = sglang ]; then extra="--hidden-layers 5"; fi
    run equipoise convert "$out/plan-8.json" --to "$format" --output "$file" $extra
    run equipoise validate "$file" --for "$format" --ranks 8 $model --redundant 8 $extra
done

printf '\n== And the flags that go with one, for a named release.\n'
run equipoise plan "$trace" --ranks 8 --redundant 8 --proposals 400000 --for sglang \
    --engine-version 0.5.23 --hidden-layers 5 --output "$out/expert_location.json"

printf '\n== The maps of two engines hold the same plan: nothing would move.\n'
run equipoise diff "$out/moe_load_balancer.yaml" "$out/expert_map.json" --ranks 8 $model
printf '\nMaps and a page (report.html) are in %s/.\n' "$out"

printf '\n== And live: four processes serve a small model; half-way the prompts turn from prose to tables.\n'
run equipoise demo
