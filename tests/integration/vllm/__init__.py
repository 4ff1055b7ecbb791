"""The plug-in in vLLM's own code, in the release that ``make test-engines`` has put on the path."""

import os

RELEASE = os.environ.get("EQUIPOISE_VLLM_RELEASE", "0.32.0")
