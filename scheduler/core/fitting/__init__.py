"""Which host can take a request, with what exactly, and which does so best."""
