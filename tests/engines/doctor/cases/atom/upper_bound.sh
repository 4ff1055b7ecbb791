# Planted: the switch that measures perfect balance, left in, and balancing without expert parallelism.
python -m atom.entrypoints.openai_server --model models/moe -tp 8 --enable-eplb --fake-eplb
# expects: wrong --fake-eplb
# expects: ignored --eplb-enable
# expects: advice rebalance_min_balancedness in eplb-config
