# Planted: two sizes where one was meant, settings without the switch.
# options: --devices 8
nohup vllm serve models/moe --tensor-parallel-size 4 --data-parallel-size 4 --enable-expert-parallel --eplb-config.window_size 500 --expert-placement-strategy round_robin > serve.log 2>&1 &
# expects: wrong --tensor-parallel-size
# expects: ignored --eplb-config
# expects: ignored --expert-placement-strategy
