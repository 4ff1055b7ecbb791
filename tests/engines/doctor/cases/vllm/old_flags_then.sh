# Documentation of 0.10.0: flags that were right then.
# options: --engine-version 0.10.0 --model deepseek-v3
VLLM_ALL2ALL_BACKEND=pplx VLLM_USE_DEEP_GEMM=1 vllm serve models/deepseek-v3 \
    --tensor-parallel-size 1 \
    --data-parallel-size 8 \
    --enable-expert-parallel \
    --enable-eplb \
    --eplb-log-balancedness \
    --eplb-window-size 1000 \
    --eplb-step-interval 3000 \
    --num-redundant-experts 8
# expects: advice --num-redundant-experts
# expects: advice --enable-eplb
