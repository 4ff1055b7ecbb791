"""The layers of a model served with expert parallelism."""
