# Planted: a communicator, a policy and a batch switch that do not go together.
vllm serve models/moe -dp 8 --enable-expert-parallel --enable-eplb --eplb-config '{"num_redundant_experts": 8, "use_async": true, "communicator": "pynccl", "policy": "swift"}'
# expects: wrong communicator in eplb-config
# expects: wrong policy in eplb-config
