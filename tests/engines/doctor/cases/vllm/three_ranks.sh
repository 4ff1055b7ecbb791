# Issue: 256 experts on 3 ranks.
# options: --engine-version 0.27.1 --model deepseek-v3
vllm serve models/deepseek-v3 --tensor-parallel-size 3 --enable-expert-parallel --enable-eplb
# expects: wrong num_redundant_experts in eplb-config
# expects: advice num_redundant_experts in eplb-config
# expects: advice --enable-eplb
