"""Multi-turn agents: environments in worker processes, and programs that use an OpenAI endpoint."""
