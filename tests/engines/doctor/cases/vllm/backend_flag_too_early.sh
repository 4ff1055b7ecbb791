# Issue: the flag of a later release.
# options: --engine-version 0.11.0
vllm serve models/moe --data-parallel-size 2 --enable-expert-parallel --all2all-backend deepep_low_latency
# expects: wrong --all2all-backend
