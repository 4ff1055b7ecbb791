"""vllm-ascend."""
