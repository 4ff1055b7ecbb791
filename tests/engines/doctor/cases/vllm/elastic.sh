# Example of elastic expert parallelism, with the flag of today.
#!/bin/bash
HOST=0.0.0.0
REDUNDANT_EXPERTS=0
while [[ $# -gt 0 ]]; do
    case $1 in
        --redundant-experts) REDUNDANT_EXPERTS="$2"; shift 2 ;;
        *) exit 1 ;;
    esac
done
vllm serve $MODEL_NAME \
    --data-parallel-size $DATA_PARALLEL_SIZE \
    --data-parallel-size-local $DATA_PARALLEL_SIZE \
    --data-parallel-backend ray \
    --enforce-eager \
    --enable-expert-parallel \
    --enable-eplb \
    --enable-elastic-ep \
    --eplb-config.num_redundant_experts "$REDUNDANT_EXPERTS" \
    --trust-remote-code \
    --host $HOST
