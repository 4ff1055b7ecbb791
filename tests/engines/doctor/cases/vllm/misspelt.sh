# Planted: names with a letter wrong.
# options: --engine-version 0.30.0
vllm serve models/moe -dp 8 --enable-expert-paralel --enable-elpb --all2all-backend deepep_lowlatency --eplb-config '{"num_redundent_experts": 8, "window_size": 1000}'
# expects: wrong --enable-expert-paralel
# expects: wrong --enable-elpb
# expects: wrong num_redundent_experts in eplb-config
# expects: wrong --all2all-backend
