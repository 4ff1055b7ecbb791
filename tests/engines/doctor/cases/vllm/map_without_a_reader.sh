# Pull request that was never merged: a map on the command line.
vllm serve models/small-moe -tp 8 --enable-expert-parallel --trust-remote-code --expert-map-path /path/to/expert_map.pth
# expects: wrong --expert-map-path
