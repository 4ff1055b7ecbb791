# Test of the engine: attention data parallelism by its new name.
# options: --devices 4
SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=1024 sglang serve --model-path models/deepseek-v4-flash --trust-remote-code --tp 4 --attn-dp-size 4 --moe-a2a-backend deepep --deepep-config '{"normal_dispatch":{"num_sms":96},"normal_combine":{"num_sms":96}}' --enable-two-batch-overlap
