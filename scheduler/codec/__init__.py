"""Between stored values and the core: the only place that knows both."""
