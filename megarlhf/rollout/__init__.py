"""One vLLM engine: settings, sampling, and updates of its weights while requests run."""
