# Issue: settings of 0.18, with the variable.
# options: --engine-version 0.18.0rc1 --devices 8
#!/bin/sh
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True
export HCCL_BUFFSIZE=2048
export OMP_PROC_BIND=false
export HCCL_OP_EXPANSION_MODE="AIV"

export DYNAMIC_EPLB=true

vllm serve /data/models/qwen3.5-35b \
  --served-model-name "qwen3.5" \
  --data-parallel-size 1 \
  --tensor-parallel-size 8 \
  --max-num-seqs 64 \
  --max-model-len 32768 \
  --trust-remote-code \
  --enable-expert-parallel \
  --gpu-memory-utilization 0.92 \
  --additional-config '{"enable_cpu_binding":true,"multistream_overlap_shared_expert":true,"eplb_config":{"dynamic_eplb":true,"expert_heat_collection_interval":400,"algorithm_execution_interval":30}}'
