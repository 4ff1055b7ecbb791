"""FastDeploy, the engine of PaddlePaddle."""
