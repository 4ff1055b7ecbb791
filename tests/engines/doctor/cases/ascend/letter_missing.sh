# Test of the engine: a name with a letter missing.
# options: --engine-version 0.11.0
vllm serve models/deepseek-v3 \
        --data-parallel-size 2 \
        --tensor-parallel-size 8 \
        --seed 1024 \
        --enable-expert-parallel \
        --max-num-seqs 16 \
        --quantization ascend \
        --trust-remote-code \
        --no-enable-prefix-caching \
        --gpu-memory-utilization 0.9 \
        --additional-config='{"dynamic_eplb":true, "num_iterations_eplb_update":100, "num_wait_woker_iterations":50}'
# expects: ignored num_wait_woker_iterations in additional-config
