# A decode server with balancing, today.
# options: --model deepseek-v3 --devices 32 --nodes 8
cat > gen.yaml <<'EOF'
tensor_parallel_size: 32
moe_expert_parallel_size: 32
enable_attention_dp: true
max_batch_size: 256
cuda_graph_config:
  enable_padding: true
moe_config:
  backend: CUTEDSL
  max_num_tokens: 8192
  load_balancer:
    num_slots: 288
    layer_updates_per_iter: 1
speculative_config:
  decoding_type: MTP
  num_nextn_predict_layers: 1
EOF
mpirun -n 32 trtllm-llmapi-launch trtllm-serve /models/deepseek-v3 --backend pytorch --config gen.yaml --host 0.0.0.0
# expects: advice num_slots in moe_config.load_balancer
# expects: advice num_slots in moe_config.load_balancer
# expects: advice layer_updates_per_iter in moe_config.load_balancer
