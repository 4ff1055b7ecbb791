# Issue: redundant experts, and the switch forgotten.
# options: --engine-version 0.11.0
vllm serve models/deepseek-v3 --data-parallel-size 16 --enable-expert-parallel --num-redundant-experts=16
# expects: wrong num_redundant_experts in eplb-config
# expects: deprecated --num-redundant-experts
