# Planted: a dispatch that is refused, and a name that is read as JSON.
python -m sglang.launch_server --model-path models/qwen3-235b --tp 8 --ep-size 8 --ep-num-redundant-experts 8 --ep-dispatch-algorithm static --init-expert-location /maps/qwen3.JSON
# expects: wrong --ep-dispatch-algorithm
# expects: wrong --init-expert-location
