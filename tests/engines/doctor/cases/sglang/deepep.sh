# Documentation: DeepEP and DeepGEMM.
# options: --devices 8
python -m sglang.launch_server --model-path models/deepseek-v3 --moe-a2a-backend deepep --moe-runner-backend deep_gemm --tp 8 --ep 8
