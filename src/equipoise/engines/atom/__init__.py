"""ATOM, AMD's engine for ROCm."""
