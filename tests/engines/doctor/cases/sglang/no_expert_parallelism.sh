# Issue: balancing of experts that are not spread.
# options: --model deepseek-v3
docker run --gpus all \
--network host --shm-size 32g \
-v /data/:/data/ \
--ipc=host \
-e HF_HUB_OFFLINE=1 -e GLOO_SOCKET_IFNAME=eth0 registry.example/lmsysorg/sglang:v0.5.3 \
python3 -m sglang.launch_server --model-path \
/data/models/deepseek-v3  \
--host 0.0.0.0 --port 8000  --trust-remote-code --tp 16  --max-running-requests 100 --dist-init-addr 10.0.0.1:20000 --nnodes 2 --node-rank 0 \
--context-length 65536 --enable-mixed-chunk --chunked-prefill-size 2048 --attention-backend fa3 \
--ep-num-redundant-experts 16 --enable-eplb
# expects: wrong --enable-eplb
# expects: wrong --ep-num-redundant-experts
# expects: wrong --deepep-mode
# expects: advice --ep-num-redundant-experts
# expects: advice --enable-eplb
# expects: advice --eplb-rebalance-layers-per-chunk
