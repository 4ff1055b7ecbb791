"""The doctor: finds what is wrong, ignored, deprecated or wasteful in an engine's launch."""
