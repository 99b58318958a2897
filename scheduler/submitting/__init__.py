"""Whether a job may be submitted, and its way into the store."""
