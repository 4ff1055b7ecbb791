"""What is wrong, ignored, deprecated or wasteful in how an engine is started."""
