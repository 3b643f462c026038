"""Scores for responses: Python functions in processes, HTTP reward models, mixes, and a server."""
