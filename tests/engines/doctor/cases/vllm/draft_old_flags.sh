# Pull request: balancing with a draft model, flags about to go.
# options: --engine-version 0.11.1 --model deepseek-v3
vllm serve models/deepseek-v3 --max-model-len 2048 --trust-remote-code --port 8000 -dp 1 -tp 8 --enable-expert-parallel --gpu-memory-utilization 0.95 --enable-eplb --num-redundant-experts 8 --eplb-window-size 200 --eplb-step-interval 600 --speculative-config '{"method":"deepseek_mtp","num_speculative_tokens":1}'
# expects: deprecated --num-redundant-experts
# expects: deprecated --eplb-window-size
# expects: deprecated --eplb-step-interval
# expects: advice num_redundant_experts in eplb-config
# expects: advice --enable-eplb
# expects: advice --speculative-config
